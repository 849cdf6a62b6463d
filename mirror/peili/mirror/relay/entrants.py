"""Whom a race may ask: the holders that the router named, and those that it finds later; the healthiest first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection

from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.relay.reputation import HEALTHY, RESTING, HolderScores
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.tasks import is_cancelled

_MOST = 32
"""Holders of one race."""
_FIRST = -1

Lookup = Callable[[], AsyncGenerator[Holder, None]]


class Entrants:
    """The holders of one race. One owner, who calls `aclose`.

    `first` is taken first, however it did before. `lookup` gives further ones, each in less than `timeout` seconds.
    Only those are taken that are `usable`, and those that are `doubted` only with those that rest.
    """

    def __init__(
        self,
        holders: Collection[Holder],
        lookup: Lookup,
        health: HolderScores,
        log: logging.Logger,
        *,
        first: Peer | None = None,
        usable: Callable[[str], bool] = lambda _: True,
        doubted: Callable[[str], bool] = lambda _: False,
        timeout: float,
    ) -> None:
        self._waiting = list(holders)
        self._known = {each.peer.id for each in holders}
        self._first = first.id if first is not None else None
        self._lookup = lookup
        self._found: AsyncGenerator[Holder, None] | None = None
        self._health = health
        self._log = log
        self._usable = usable
        self._doubted = doubted
        self._timeout = timeout

    @property
    def left(self) -> int:
        """How many wait to be taken."""
        return len(self._waiting)

    def take(self, most: int) -> Holder | None:
        """The holder to ask next, whose rank is at most `most`; None if there is none now. See `HolderScores.rank`."""
        self._waiting = [each for each in self._waiting if self._usable(each.peer.id)]
        ranks = {each.peer.id: self._rank(each.peer.id) for each in self._waiting}
        able = [each for each in self._waiting if ranks[each.peer.id] <= most]
        if not able:
            return None

        def last(holder: Holder) -> tuple[int, bool, bool, int]:
            name, rank = holder.peer.id, ranks[holder.peer.id]
            merit = 0 if rank == HEALTHY else self._health.successes(name)
            return rank, self._doubted(name), self._health.is_slow(name), -merit

        chosen = min(able, key=last)  # of equals the one that the router named first
        self._waiting.remove(chosen)
        return chosen

    async def more(self) -> bool:
        """Wait for a further holder; False: there will be none. Called by one task, and not after that."""
        try:
            if self._found is None:
                self._found = self._lookup()
            while len(self._known) < _MOST:
                async with Deadline(self._timeout):
                    holder = await anext(self._found)
                if holder.peer.id not in self._known:
                    self._known.add(holder.peer.id)
                    self._waiting.append(holder)
                    return True
        except StopAsyncIteration:
            pass
        except (Exception, asyncio.CancelledError) as error:  # a stranger's code; the holders in hand are good
            if is_cancelled(error):
                raise
            self._log.info("no further holders can be had: %r", error)
        return False

    async def aclose(self) -> None:
        """Look for no more. Idempotent. Neither raises nor waits long: what was won is good, whatever a lookup does."""
        found, self._found = self._found, None
        if found is None:
            return
        try:
            async with Deadline(self._timeout):
                await found.aclose()
        except (Exception, asyncio.CancelledError) as error:  # as above
            if is_cancelled(error):
                raise
            self._log.info("the lookup of further holders did not end well: %r", error)

    def _rank(self, peer_id: str) -> int:
        if peer_id == self._first:
            return _FIRST
        return RESTING if self._doubted(peer_id) else self._health.rank(peer_id)
