"""Who has what: the interface of routers."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing

from starlette.routing import BaseRoute

from peili.mirror.oci.references import Key
from peili.mirror.peer_api.peers import Feed, Holder, Peer, Upstream, Wait, Want
from peili.mirror.plugins.plugin import Plugin
from peili.mirror.plugins.store import StoreEvent


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
