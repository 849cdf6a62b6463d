"""What the mirror would give to a plug-in, for a plug-in that is tried alone."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager

from typing_extensions import override

from peili.mirror.client.client import PeerClient
from peili.mirror.content.inventory import Inventory
from peili.mirror.errors import NotFound
from peili.mirror.limits import Limits
from peili.mirror.oci.references import Descriptor, Digest, Key, Reference
from peili.mirror.oci.selection import Selection
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.plugins.content import Content, StoreEvent
from peili.mirror.plugins.interfaces import Context, Plugin, Router, Store


@asynccontextmanager
async def context_for(
    plugin: Plugin,
    *,
    identity: str = "this-host",
    store: Store | None = None,
    router: Router | None = None,
    peer: Peer | None = None,
    selection: Selection | None = None,
    limits: Limits | None = None,
    log: logging.Logger | None = None,
) -> AsyncGenerator[Context]:
    """A context to enter `plugin` with (``plugin.run(context)``), good until it is left.

    Where they are not given, a store that is empty and a router that knows nobody stand in for the mirror's; a plug-in
    that is one of these stands for itself. `peer` is this host once its peer door answers; None: it has none.
    """
    limits = limits or Limits()
    # Plain HTTP is spoken here, and to load the system's certificate authorities would take longer than most checks.
    client = PeerClient(limits, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    if store is None:
        store = plugin if isinstance(plugin, Store) else EmptyStore()
    if router is None:
        router = plugin if isinstance(plugin, Router) else EmptyRouter()
    log = log or logging.getLogger(f"peili.testing.{type(plugin).__name__}")

    async def listening() -> Peer:
        while peer is None:
            await asyncio.Event().wait()
        return peer

    try:
        yield Context(identity, listening, store, router, client, selection or Selection(), limits, log)
    finally:
        await client.aclose()


@asynccontextmanager
async def entered(plugin: Plugin) -> AsyncGenerator[None]:
    """`plugin` entered alone, with a context of its own."""
    async with context_for(plugin) as context, plugin.run(context):
        yield


class EmptyStore(Store):
    """Has nothing, and knows that at once."""

    def __init__(self) -> None:
        self._inventory = Inventory()
        self._inventory.replace(())

    @override
    async def resolve(self, reference: Reference) -> Descriptor:
        raise NotFound(f"{reference} is not here")

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        raise NotFound(f"{digest} is not here")

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        raise NotFound(f"{digest} is not here")

    @override
    def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        return self._inventory.watch()

    @override
    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        return ()


class EmptyRouter(Router):
    """Knows nobody."""

    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        nobody: tuple[Holder, ...] = ()
        for holder in nobody:
            yield holder

    @override
    def peers(self) -> Collection[Peer]:
        return ()
