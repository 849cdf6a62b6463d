"""Enters a plug-in alone, with a context like the one that a mirror creates."""

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
from peili.mirror.upstream.client import UpstreamClient


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
    upstream: UpstreamClient | None = None,
) -> AsyncGenerator[Context]:
    """Create a context to enter `plugin` with: ``plugin.run(context)``. It is valid until this exits.

    Args:
        plugin: The plug-in to be entered.
        identity: This host's id.
        store: The mirror's store. By default the plug-in itself if it is a store, or else an empty one.
        router: The mirror's router. By default the plug-in itself if it is a router, or else one without peers.
        peer: This host as a peer, once its peer door answers. None: it has no peer door.
        selection: The selection of registries. By default it allows everything.
        limits: The limits. By default those of a mirror without configuration.
        log: The logger. By default one with the name of the plug-in's class.
        upstream: Asks registries; it is entered already. By default every registry is unreachable.
    """
    limits = limits or Limits()
    # Tests use plain HTTP. To load the system's certificate authorities would take longer than most checks.
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
        selection, upstream = selection or Selection(), upstream or UpstreamClient()
        yield Context(identity, listening, store, router, client, selection, limits, log, upstream)
    finally:
        await client.aclose()


@asynccontextmanager
async def entered(plugin: Plugin) -> AsyncGenerator[None]:
    """Enter `plugin` alone, with a context of `context_for`."""
    async with context_for(plugin) as context, plugin.run(context):
        yield


class EmptyStore(Store):
    """A store without content."""

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
    """A router without peers."""

    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        nobody: tuple[Holder, ...] = ()
        for holder in nobody:
            yield holder

    @override
    def peers(self) -> Collection[Peer]:
        return ()
