"""The interfaces that plug-ins implement: `Store`, `Router` and `Resolver`, with their base `Plugin`.

A router is asked with a `Want`, and answers with `Feed`, `Wait` or `Upstream`. A running plug-in gets a `Context` from
its mirror. These classes refer to each other, so they are in one module.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, Protocol, Self, TypeVar

from starlette.routing import BaseRoute

from peili.mirror.client.client import PeerClient
from peili.mirror.errors import Unavailable
from peili.mirror.limits import Limits
from peili.mirror.oci.references import Descriptor, Digest, Key, Reference
from peili.mirror.oci.requests import Requester
from peili.mirror.oci.selection import Selection
from peili.mirror.peer_api.keys import InFlight
from peili.mirror.peer_api.peers import Holder, Peer, UnreachablePeer
from peili.mirror.plugins.content import Content, StoreEvent
from peili.mirror.support.options import Options
from peili.mirror.upstream.client import UpstreamClient

_Item = TypeVar("_Item")


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


@dataclass(frozen=True, slots=True)
class Want:
    """What a host needs.

    Attributes:
        key: The key of the content.
        offset: The first byte that the host needs.
        failed: The ids of the peers that cannot be used, each with the reason, a `FailureReason`.
        size: The size of the whole content in bytes, if the host knows it.
        can_share: Whether the host needs the content itself, and can show it to other hosts while it arrives. The
            router may then let other hosts wait for it.
        accepts_in_flight: Whether the host also reads from holders that still receive the content, and waits until
            there is one. If not, the router claims nothing for it, and the answer has complete holders only.
    """

    key: Key
    offset: int = 0
    failed: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    size: int | None = None
    can_share: bool = False
    accepts_in_flight: bool = False


class LeaseEnd(StrEnum):
    """Why a lease is released if no peer failed. The other reasons are in `FailureReason`."""

    DONE = "done"
    """The runtime has what it wanted, or goes upstream because the router returned `Upstream`."""
    GONE = "gone"
    """The runtime disconnected."""
    SUPERSEDED = "superseded"
    """The lease was superseded, and the router was asked again."""
    UPSTREAM = "upstream"
    """The runtime goes upstream, although the router returned `Feed`: none of the holders could be used, for example
    because there was no memory. No peer is to blame."""


class Lease:
    """Receives the progress and the end of a transfer for the router. This class ignores them; a router subclasses it.

    Used on the mirror's loop only. `use` and `progress` are not called after `release`.
    """

    def use(self, holder: Holder) -> None:
        """Record that the transfer reads from `holder`. Must not block.

        Called when a holder has sent its first bytes. While it still receives the content, this is called again about
        once a second, with the bytes that it then has.
        """

    async def superseded(self) -> None:
        """Return when the router has a better answer. The caller then calls `Router.acquire` again, at the byte.

        The caller cancels this when it no longer waits for it. By default it never returns.
        """
        await asyncio.get_running_loop().create_future()

    def progress(self, offset: int) -> None:
        """Record that the runtime has received all bytes before `offset`.

        Called often, in the task of the runtime's request, so it must not block.
        """

    async def release(self, reason: str) -> None:
        """Record that the transfer no longer uses the router's answer. Called exactly once. Must not raise.

        It runs in its own task, so neither the runtime's request nor its end waits for it or cancels it. It may run at
        the same time as the release of other leases, and as an `acquire` for the same key, even by the same request. It
        is cancelled after ``limits.lookup_timeout`` seconds. Draining the mirror waits for it. So does exiting the
        mirror, before the router is exited, for up to ``limits.stop_timeout`` seconds; then it is cancelled. Only a
        response that continues after the mirror was exited releases its lease later, and in its own task.

        Args:
            reason: A `LeaseEnd` or a `FailureReason`.
        """


@dataclass(frozen=True, slots=True)
class Feed:
    """Get the content from one of `holders`, best first.

    A holder that is not complete still receives the content. The mirror reads from at most one such holder at a time,
    and asks no other holder while it waits for it. Complete holders are asked first. All holders that are not complete
    must answer as `peer_api.keys` says, so that the mirror finds out whether they wait for bytes themselves.
    """

    holders: tuple[Holder, ...]
    lease: Lease = field(default_factory=Lease)


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at `until`, in seconds of the running loop's clock (`loop.time()`)."""

    until: float


@dataclass(frozen=True, slots=True)
class Upstream:
    """No peer has the content: let the runtime go upstream.

    The lease is released at once, with `LeaseEnd.DONE` when the runtime is sent upstream, or with `LeaseEnd.GONE` if it
    left before. A router that lets other hosts wait for this one learns the rest from `Router.advertise`: the content
    in flight, once its first bytes are there. A router must not wait for these bytes for long, because the runtime may
    be unable to fetch them.
    """

    lease: Lease = field(default_factory=Lease)


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


class ResolverLoader(Protocol):
    """Constructs resolvers by name, as `Plugins` does."""

    def resolver(self, kind: str, options: Mapping[str, Any]) -> Resolver:
        """Return the resolver `kind`, constructed from its options.

        Args:
            kind: The name of the resolver.
            options: Its section of the configuration, without ``kind``.

        Raises:
            PluginNotFound: There is no resolver `kind`.
            ConfigError: An option is unknown or wrong.
        """
        ...


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a tag means.

    Attributes:
        descriptor: The content.
        warning: What to think of it, as the value of a Warning header (RFC 7234, 5.5), for example that it may be old;
            None if there is nothing to say.
    """

    descriptor: Descriptor
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Listed(Generic[_Item]):
    """What a repository has.

    Attributes:
        items: The tags, or the descriptors of referrers as JSON objects.
        warning: As in `Resolution`.
    """

    items: Sequence[_Item] = ()
    warning: str | None = None


class Resolver(Plugin):
    """Which digest a tag means.

    A resolver that asks the registry with the rights of the runtime overrides `resolve_for`; all others need only
    `resolve`.
    """

    @classmethod
    def from_plugins(cls, config: Mapping[str, Any], plugins: ResolverLoader) -> Self:
        """Construct a resolver that is made of other resolvers.

        Args:
            config: As for `from_config`.
            plugins: Constructs the other resolvers.

        Raises:
            ConfigError: An option is unknown or wrong.
        """
        return cls.from_config(config)

    @abstractmethod
    async def resolve(self, reference: Reference) -> Descriptor | None:
        """Return the descriptor that `reference` means; None if the resolver does not know, so that upstream decides.

        May be called concurrently. Takes bounded time.

        Raises:
            Unavailable: The resolver can't answer now. This counts as None.
        """

    async def resolve_for(self, reference: Reference, requester: Requester) -> Resolution | None:
        """Return what `reference` means, to answer a request of the runtime.

        By default, it is what `resolve` returns. May be called concurrently. Takes bounded time.

        Args:
            reference: The reference.
            requester: Who asks.

        Raises:
            AuthorizationRequired: The registry wants to know who asks.
            Unavailable: The resolver can't answer now. This counts as None.
        """
        descriptor = await self.resolve(reference)
        return None if descriptor is None else Resolution(descriptor)

    def routes(self) -> Sequence[BaseRoute]:
        """Return the routes for other hosts: served below ``/_resolver`` of the peer door, behind its access check.

        As for `Router.routes`.
        """
        return ()

    async def tags(self, registry: str, repository: str, stored: Collection[str]) -> Collection[str]:
        """Return the tags of a repository for which `resolve` has an answer. Takes bounded time.

        By default, they are those of `stored` for which it has one. Override this if `resolve` also answers for others.

        Args:
            registry: The registry.
            repository: The repository.
            stored: The tags that this host's store can serve.

        Raises:
            Unavailable: The resolver can't answer now. This counts as no tags.
        """
        found: list[str] = []
        for tag in stored:
            with suppress(Unavailable):
                if await self.resolve(Reference(registry, repository, tag)) is not None:
                    found.append(tag)
        return found

    async def tags_for(
        self, registry: str, repository: str, stored: Collection[str], requester: Requester
    ) -> Listed[str]:
        """Return the tags of a repository, to answer a request of the runtime. By default, they are those of `tags`.

        Args:
            registry: The registry.
            repository: The repository.
            stored: The tags that this host's store can serve.
            requester: Who asks.

        Raises:
            AuthorizationRequired: The registry wants to know who asks.
            Unavailable: The resolver can't answer now. This counts as no tags.
        """
        return Listed(tuple(await self.tags(registry, repository, stored)))

    async def referrers_for(
        self, registry: str, repository: str, digest: Digest, requester: Requester
    ) -> Listed[Mapping[str, Any]] | None:
        """Return the descriptors of what refers to `digest`, such as signatures, to answer a request of the runtime.

        By default it is None: the resolver does not know, so that the runtime asks upstream. Takes bounded time.

        Args:
            registry: The registry.
            repository: The repository.
            digest: The digest of a manifest.
            requester: Who asks.

        Raises:
            AuthorizationRequired: The registry wants to know who asks.
            Unavailable: The resolver can't answer now. This counts as None.
        """
        return None


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


def running_already(plugin: Plugin) -> RuntimeError:
    """Return the error to raise if a second mirror enters `plugin`, which serves one mirror at a time."""
    return RuntimeError(f"this {type(plugin).__name__} is running already; each mirror needs its own")
