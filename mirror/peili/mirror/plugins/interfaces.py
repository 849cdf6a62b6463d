"""The base of all plug-ins, the interfaces of stores and routers, and the context in which plug-ins run.

A `Plugin` runs in a `Context`, which has the store and the router of the mirror. These classes refer to each other, so
they are in one module.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

from starlette.routing import BaseRoute

from peili.mirror.client.client import PeerClient
from peili.mirror.limits import Limits
from peili.mirror.oci.references import Descriptor, Digest, Key, Reference
from peili.mirror.oci.selection import Selection
from peili.mirror.peer_api.keys import InFlight
from peili.mirror.peer_api.peers import Holder, Peer, UnreachablePeer
from peili.mirror.plugins.acquiring import Feed, Upstream, Wait, Want
from peili.mirror.plugins.content import Content, StoreEvent
from peili.mirror.support.options import Options
from peili.mirror.upstream.client import UpstreamClient


class Plugin(ABC):  # noqa: B024 - a base of interfaces; each method has a default
    """The base of stores, routers and resolvers.

    A plug-in is constructed without an event loop, from its own options only. The mirror uses it on its loop,
    concurrently, and may cancel it at every await. It may be entered again after it was exited. A plug-in that can't
    serve two mirrors at the same time raises RuntimeError when a second one enters it; see `running_already`.
    """

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Construct a plug-in from its section of the configuration.

        By default a plug-in has no options.

        Args:
            config: The section without ``kind``; see `Options`.

        Raises:
            ConfigError: An option is unknown or wrong.
        """
        Options(config)
        return cls()

    def run(self, context: Context) -> AbstractAsyncContextManager[None]:
        """Return a context manager that the mirror enters before it uses the plug-in, and exits afterwards.

        Both happen in the same task. Entering must not wait for a backend.
        """
        return nullcontext()

    def ready(self) -> bool:
        """Return whether the plug-in can do its work now. Called often, so it must be cheap."""
        return True

    def reload(self) -> None:  # noqa: B027 - most plug-ins have nothing to read again
        """Read again soon what the plug-in has read from outside, such as a file. Called on the mirror's loop."""


class Store(Plugin):
    """What this host has.

    Every method may be called concurrently. If the backend does not answer, every method raises StoreUnavailable in
    bounded time, unless the store can answer without its backend.
    """

    @abstractmethod
    async def resolve(self, reference: Reference) -> Descriptor:
        """Return what `reference` means on this host.

        Raises:
            NotFound: The store does not have the reference.
        """

    @abstractmethod
    async def describe(self, digest: Digest) -> Descriptor:
        """Return the descriptor of content that the store has whole.

        The media type of a manifest or index is its own. The media type of all other content is
        ``application/octet-stream``.

        Raises:
            NotFound: The store does not have the content.
        """

    @abstractmethod
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        """Open the content of `digest`. The caller closes it.

        Args:
            digest: The digest of the content.
            partial: Also open content that is still arriving.

        Raises:
            NotFound: The store does not have the content whole, or, with `partial`, can't show it while it arrives.
        """

    @abstractmethod
    def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        """Yield what the store has: first everything, then `Synced`, then changes as they happen. It never ends.

        Events come in batches. Each caller gets its own sequence. While the backend is away, nothing is yielded; once
        it is back, only the differences are. Does not raise StoreUnavailable.

        Content that is still arriving is a `Have` that is not complete. A store that can open such content yields it,
        and yields it again while it grows; twice a second is enough. In the end, it yields a complete `Have` or a
        `Gone`. A store that notices that nobody writes the content any more yields `Gone`, and a `Have` if somebody
        continues. Until then, `open` does not show the content, and waits for more of it raise Aborted.

        A tag is a `Have` with its target, which is yielded again when the tag means something else.
        """

    @abstractmethod
    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        """Return all tag references of this host with what they mean, sorted by reference."""

    async def tagged_at(self, reference: Reference) -> float | None:
        """Return since when `reference` means what it means here, in seconds since 1970. By default it is not known.

        Raises:
            NotFound: The store does not have the reference.
        """
        return None

    async def repositories(self) -> Collection[tuple[str, str, Digest]]:
        """Return registry, repository and digest of each image of this host, also of those without a tag.

        By default, they are those of `images`. Override it if the store knows others, which were pulled by digest.
        """
        return [(each.registry, each.repository, target.digest) for each, target in await self.images()]

    async def was_fetched(self, digest: Digest) -> bool | None:
        """Return whether the runtime has fetched whole content from a registry; None if the store does not know.

        By default it is None. It matters for ``Mirror(rights=…)``: what was imported or built on this host is for
        nobody until an image has it, whoever has requested it before. A store may know it half a second after it has
        the content, but not later.

        Raises:
            NotFound: The content is not there.
            Unavailable: The store does not answer.
        """
        return None

    def shows_in_flight(self) -> bool:
        """Return whether `open` with `partial` shows what the runtime fetches now, or begins to fetch. Must be cheap.

        By default it is False. Other hosts then do not wait for content that this host fetches from upstream.
        """
        return False

    async def discard(self, digest: Digest) -> bool:
        """Remove the copy of `digest` that is still arriving, because it is known to be wrong.

        Whole content is never removed. If there are several copies and the store can't tell which one is wrong, none is
        removed. By default nothing is removed.

        Returns:
            Whether a copy was removed.
        """
        return False


class Router(Plugin):
    """Who has what. Every method may be called concurrently."""

    first_holders = 4
    """How many holders the default `acquire` gathers at most."""
    gather_time = 0.01
    """Seconds for which the default `acquire` gathers more holders once it has one."""

    @abstractmethod
    def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        """Yield the holders of `key`, best first, as they are found. It ends when there are no more, in bounded time.

        This host is never among them. It is also called in the middle of a transfer, if the known holders are slow.

        Raises:
            RouterUnavailable: The router can't look up keys now.
        """

    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        """Return from where this host should get `want` now.

        Called at the start of each transfer, when a transfer needs other holders, and when its lease is superseded. A
        repeated call gets the same answer, unless something has changed: all requests of this host for one key count
        as one. Peers in ``want.failed`` are not in the answer. There are incomplete holders in it only if
        ``want.accepts_in_flight``. The lease in the answer receives the progress, and is released with a reason (see
        `Lease`). The default implementation uses `lookup`, and returns complete holders only.

        The mirror calls this in the task of the runtime's request, which waits for it. Calls of other requests may run
        at the same time, also for the same key. The call is cancelled when the runtime disconnects, after twice
        ``limits.lookup_timeout`` plus `gather_time` seconds, or when the transfer has made no progress for
        ``limits.wait_timeout`` seconds. In the last two cases the runtime goes upstream. A router that needs longer
        returns `Wait` and is called again. A lease that was not returned is not released, so a call that is cancelled
        must undo what it recorded.

        Raises:
            RouterUnavailable: The router can't answer now.
        """
        loop = asyncio.get_running_loop()
        found: list[Holder] = []
        async with aclosing(self.lookup(want.key)) as holders:
            try:
                async with asyncio.timeout(None) as gathering:
                    async for holder in holders:
                        if not holder.complete or holder.peer.id in want.failed:
                            continue
                        if not found:
                            gathering.reschedule(loop.time() + self.gather_time)
                        found.append(holder)
                        if len(found) == self.first_holders:
                            break
            except TimeoutError:
                pass  # these holders are enough; others are looked up when they fail
        return Feed(tuple(found)) if found else Upstream()

    async def advertise(self, have: Collection[StoreEvent]) -> None:
        """Record that this host has these keys, and repeat it to peers as needed, until `withdraw`.

        By default nothing is recorded: a router that asks its peers for content does not need it.

        Args:
            have: `Have` events, and `Synced` once everything that the store has was advertised. If a `Have` is not
                complete, this host has only a part of the content so far, and peers must not take it for the whole.

        Raises:
            RouterUnavailable: The keys could not even be recorded.
        """

    async def withdraw(self, keys: Collection[Key]) -> None:
        """Record that this host no longer has these keys. Unknown keys are ignored.

        Raises:
            RouterUnavailable: This could not even be recorded.
        """

    @abstractmethod
    def peers(self) -> Collection[Peer]:
        """Return the peers that are known and answer, without this host. Must be cheap, and must not raise."""

    def home(self, key: Key) -> Peer | None:
        """Return the peer that all hosts agree on to coordinate what concerns `key`. Must be cheap, and must not raise.

        By default there is none. None is also returned if it is this host, or does not answer.
        """
        return None

    def unreachable(self) -> Collection[UnreachablePeer]:
        """Return the peers that are known, but do not answer. Must be cheap, and must not raise."""
        return ()

    def routes(self) -> Sequence[BaseRoute]:
        """Return the routes for other hosts: served below ``/_router`` of the peer door, behind its access check.

        Called once, when the mirror is constructed. Each mirror calls its own router, so handlers may be bound methods.
        """
        return ()


async def _always_open(_: Key) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Context:
    """What a mirror provides to its plug-ins. Valid while `Plugin.run` is entered.

    Attributes:
        identity: This host's id among its peers.
        listening: Waits until this host's own peer door answers, and returns this host as a peer. It never returns if
            there is no peer door.
        store: The store of the mirror.
        router: The router of the mirror.
        client: An HTTP client for peers.
        selection: The registries and repositories that the mirror is for.
        limits: The bounds of the mirror.
        log: The plug-in's own logger.
        upstream: Asks registries.
        covers: Returns whether only who has the right to may read a repository, given its registry and its name.
        limited: Counts in the mirror's metrics that a limit was reached. Its argument is the name of the limit.
        granted: Counts what this host, as a home, answered to a host that asked from where to get content.
        in_flight: Returns how the content of a digest arrives at this host, as far as the mirror knows without the
            store. None if the mirror does not expect it.
        is_open: Returns whether every host may know that this host has a key, and get its content. If not, only hosts
            that have proven who they are may. Takes bounded time, and does not raise.
        is_drained: Returns whether the mirror was drained, and not resumed since. It answers requests, but a router
            tells no other host that this host has something.
    """

    identity: str
    listening: Callable[[], Awaitable[Peer]]
    store: Store
    router: Router
    client: PeerClient
    selection: Selection
    limits: Limits
    log: logging.Logger
    upstream: UpstreamClient = field(default_factory=UpstreamClient)
    covers: Callable[[str, str], bool] = lambda registry, repository: False
    limited: Callable[[str], None] = lambda _: None
    granted: Callable[[str], None] = lambda _: None
    in_flight: Callable[[Digest], InFlight | None] = lambda _: None
    is_open: Callable[[Key], Awaitable[bool]] = _always_open
    is_drained: Callable[[], bool] = lambda: False


def running_already(plugin: Plugin) -> RuntimeError:
    """Return the error to raise if a second mirror enters `plugin`, which serves one mirror at a time."""
    return RuntimeError(f"this {type(plugin).__name__} is running already; each mirror needs its own")
