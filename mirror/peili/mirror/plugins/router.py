"""Who has what: the interface of routers."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum

from starlette.routing import BaseRoute

from peili.mirror.oci.references import Key
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.plugins.plugin import Plugin
from peili.mirror.plugins.store import StoreEvent


@dataclass(frozen=True, slots=True)
class Want:
    """What a host is after: the content of `key` from byte `offset` on.

    `failed` maps the id of each peer that can't be used to the reason, a `FailureReason`.
    """

    key: Key
    offset: int = 0
    failed: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)


class LeaseEnd(StrEnum):
    """Why a lease is released, if no peer failed; see `FailureReason` for the other reasons."""

    DONE = "done"
    """The runtime has what it wanted, or does as the router advised."""
    GONE = "gone"
    """The runtime disconnected."""


class Lease:
    """What a router lends with its advice, so that it can see what became of it. This one records nothing.

    Used on the mirror's loop only. `progress` is called often, in the task of the runtime's request, and must not
    block; `release` is called exactly once, whatever happened, and must not raise. There is no progress after it.
    """

    def progress(self, offset: int) -> None:
        """Bytes up to `offset` have been handed to the runtime."""

    async def release(self, reason: str) -> None:
        """The advice is no longer used; `reason` is a `LeaseEnd` or a `FailureReason`.

        Called in a task of its own, which neither the runtime's leaving nor the end of its request ends, and for which
        the request does not wait. So it may run beside other leases' releases, and beside an `acquire` for the same
        key, by this very request too. Cancelled after ``limits.lookup_timeout`` seconds (1 by default). Draining waits
        for it, and so does leaving the mirror, before the router is left: at most ``limits.stop_timeout`` seconds, then
        it is cancelled. Only an answer that a host lets outlast the mirror releases later, and in its own task.
        """


@dataclass(frozen=True, slots=True)
class Feed:
    """Stream from one of `holders`, best first."""

    holders: tuple[Holder, ...]
    lease: Lease = field(default_factory=Lease)


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at `until`, in seconds of the running loop's clock (`loop.time()`)."""

    until: float


@dataclass(frozen=True, slots=True)
class Upstream:
    """Nobody near has it: let the runtime go upstream."""

    lease: Lease = field(default_factory=Lease)


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
