"""The interfaces that plug-ins implement: `Store`, `Router` and `Resolver`, with their base `Plugin`.

`Context` is what a running plug-in gets from its mirror. These classes refer to each other, so they stand together.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, Self

from starlette.routing import BaseRoute

from peili.mirror.client.client import PeerClient
from peili.mirror.limits import Limits
from peili.mirror.oci.references import Descriptor, Digest, Key, Reference
from peili.mirror.oci.selection import Selection
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.plugins.advice import Feed, Upstream, Wait, Want
from peili.mirror.plugins.content import Content, StoreEvent
from peili.mirror.support.options import Options


class Plugin(ABC):  # noqa: B024 - a base of interfaces; each method has a default
    """Built without an event loop, from its own options only. Used on the mirror's loop, concurrently, cancellable at
    every await. May be entered again after it was left. One that can't serve two mirrors at a time raises RuntimeError
    where it is entered a second time meanwhile.
    """

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build one from what stands under its section besides ``kind``. Raises ConfigError(key, expected).

        By default there are no options.
        """
        Options(config)
        return cls()

    def run(self, context: Context) -> AbstractAsyncContextManager[None]:
        """Entered before use and left after it, in one task. Entering must not wait for a backend."""
        return nullcontext()

    def ready(self) -> bool:
        """Whether it can do its work now. Called often, must be cheap."""
        return True


class Store(Plugin):
    """What this host has. Every method may be called concurrently; each raises StoreUnavailable when the backend does
    not answer, and does so in bounded time. Content that the store knows, and can vouch for without its backend, it may
    go on to serve.
    """

    @abstractmethod
    async def resolve(self, reference: Reference) -> Descriptor:
        """What `reference` stands for on this host. Raises NotFound."""

    @abstractmethod
    async def describe(self, digest: Digest) -> Descriptor:
        """The descriptor of content that is here whole. Raises NotFound.

        The media type of a manifest or index is its own; that of anything else is ``application/octet-stream``.
        """

    @abstractmethod
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        """The content of `digest`. Raises NotFound when it is not here whole.

        With `partial`, content that is still arriving is opened too; a store that can't show it raises NotFound.
        """

    @abstractmethod
    def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        """First everything that is here, then `Synced`, then changes as they happen, in batches, without an end.

        Each caller gets a sequence of its own. While the backend is away nothing is told; once it is back only what
        differs is. Does not raise StoreUnavailable.
        """

    @abstractmethod
    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        """All tag references of this host with what they stand for, sorted by reference."""

    async def discard(self, digest: Digest) -> bool:
        """Remove the copy of `digest` that is still arriving, which is known to be wrong; whether that was done.

        Whole content is never touched; nor is any of several copies of which it can't be told which one is wrong. By
        default nothing is done.
        """
        return False


class Router(Plugin):
    """Who has what. Every method may be called concurrently."""

    first_holders = 4
    """How many holders the default `acquire` gathers at most."""
    gather_time = 0.01
    """Seconds for which the default `acquire` goes on gathering once it has one holder."""

    @abstractmethod
    def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        """The holders of `key`, best first, as they are found; ending means there are no more.

        This host is never among them. Bounded in time. Raises RouterUnavailable. Also asked in the middle of a
        transfer, where the holders in hand hesitate.
        """

    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        """Where shall this host get `want` from, now?

        Asked at each start and restart of a transfer; idempotent per host. The lease in the answer is told of
        progress and released with a reason (see `Lease`). Peers in ``want.failed`` are left out. By default built on
        `lookup`. Raises RouterUnavailable.

        Called in the task of the runtime's request, which waits for it; concurrently with other requests', for the same
        key too. Cancelled when the runtime leaves, after twice ``limits.lookup_timeout`` plus `gather_time` seconds,
        and where the transfer has made no progress for ``limits.wait_timeout`` seconds; after the last two the runtime
        goes upstream. A router that needs longer answers `Wait`, and is asked again. A lease that was not returned is
        not released: one that is cancelled takes back itself what it noted.
        """
        loop = asyncio.get_running_loop()
        found: list[Holder] = []
        async with aclosing(self.lookup(want.key)) as holders:
            try:
                async with asyncio.timeout(None) as gathering:
                    async for holder in holders:
                        if holder.peer.id in want.failed:
                            continue
                        if not found:
                            gathering.reschedule(loop.time() + self.gather_time)
                        found.append(holder)
                        if len(found) == self.first_holders:
                            break
            except TimeoutError:
                pass  # some holders are in hand; later ones are found again when these fail
        return Feed(tuple(found)) if found else Upstream()

    async def advertise(self, have: Collection[StoreEvent]) -> None:
        """Make known that this host has these (`Have` events; others mean nothing here).

        Recorded, and repeated as the router needs, until withdrawn. Raises RouterUnavailable when it could not even
        be recorded. By default nothing is announced: a router that finds content by asking has no need to.
        """

    async def withdraw(self, keys: Collection[Key]) -> None:
        """This host has these no longer; unknown ones are ignored. Raises RouterUnavailable."""

    @abstractmethod
    def peers(self) -> Collection[Peer]:
        """The peers that are known and not given up, without this host. Cheap; never raises."""

    def routes(self) -> Sequence[BaseRoute]:
        """What this router serves to other peers, below ``/_router`` of the peer door and behind its guard.

        Asked once, when the mirror is made. Each mirror calls its own router, so handlers may be bound methods.
        """
        return ()


class ResolverLoader(Protocol):
    """Builds resolvers by name, as `Plugins` does."""

    def resolver(self, kind: str, options: Mapping[str, Any]) -> Resolver:
        """Return the resolver called `kind`, built from its options. Raises PluginNotFound, ConfigError."""
        ...


class Resolver(Plugin):
    """Which digest a tag means."""

    @classmethod
    def from_plugins(cls, config: Mapping[str, Any], plugins: ResolverLoader) -> Self:
        """Like `from_config`, for a resolver that is made of others, which `plugins` builds by name."""
        return cls.from_config(config)

    @abstractmethod
    async def resolve(self, reference: Reference) -> Descriptor | None:
        """What `reference` means; None: no opinion, the runtime asks upstream.

        May be called concurrently; bounded in time. Raises Unavailable, which counts as None.
        """


def _count_nothing(limit: str) -> None:
    """The default of `Context.limited`."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the mirror gives to its plug-ins. Good while `Plugin.run` is entered.

    Attributes:
        identity: this host's id among its peers.
        listening: waits until this host's own peer door answers, and returns this host as a peer. Never returns
            where there is no peer door.
        store, router: the mirror's.
        client: speaks to peers.
        selection: which registries and repositories this mirror is for.
        limits: the mirror's bounds.
        log: a logger of this plug-in's own.
        limited: counts, in the mirror's metrics, that a bound of this name was reached.
    """

    identity: str
    listening: Callable[[], Awaitable[Peer]]
    store: Store
    router: Router
    client: PeerClient
    selection: Selection
    limits: Limits
    log: logging.Logger
    limited: Callable[[str], None] = _count_nothing


def running_already(plugin: Plugin) -> RuntimeError:
    """What to raise where `plugin`, which serves one mirror at a time, is entered by a second one."""
    return RuntimeError(f"this {type(plugin).__name__} is running already; each mirror needs one of its own")
