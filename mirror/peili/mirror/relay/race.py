"""Asks one holder, and more of them when it hesitates: the first that gives what it was asked for wins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.relay.entrants import Entrants
from peili.mirror.relay.reputation import HEALTHY, MUCH_FASTER, RESTING, UNPROVEN

_MOST = 16
"""Holders that are asked at the same time."""
_LAST_RESORT = 4
"""Times `hedge_delay` after which those that rest are asked, though others may still answer."""


class NotBetter(PeerUnavailable):
    """The peer did what it was asked for, and no better than who sends already. That is no failure."""


class Prize(Protocol):
    """What there is to win. One owner, who closes it."""

    async def aclose(self) -> None:
        """Free it."""


P = TypeVar("P", bound=Prize)


@dataclass(frozen=True, slots=True)
class Rules:
    """How a race is run.

    `failed` hears of each that would not do, `hesitated` of each that took far longer than the winner. Others are
    asked after `patience` seconds. `beside`: somebody sends already, so that those that rest are not asked.
    """

    failed: Callable[[Peer, PeerUnavailable], None]
    hesitated: Callable[[Peer], None]
    patience: float
    hedge_delay: float
    log: logging.Logger
    beside: bool = False


async def first_prize(entrants: Entrants, ask: Callable[[Holder], Coroutine[Any, Any, P]], rules: Rules) -> P | None:
    """What the first holder gives to `ask`, which raises PeerUnavailable; None where all failed.

    One is asked at first, and another for each that fails. Each time when nobody has won after ``rules.patience``
    seconds, twice as many are asked as the time before; beside one that sends, four times as many. A failure that is
    no peer's, and so a bug, is logged as well, and ends no other's try. What came too late is closed.
    """
    race = _Race(entrants, ask, rules)
    try:
        return await race.run()
    finally:
        await race.close()


class _Race(Generic[P]):
    """Who is being asked, and how many more are to be."""

    def __init__(self, entrants: Entrants, ask: Callable[[Holder], Coroutine[Any, Any, P]], rules: Rules) -> None:
        self.winner: P | None = None
        self._entrants = entrants
        self._give = ask
        self._rules = rules
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._asked: dict[asyncio.Task[P], tuple[Holder, float]] = {}
        self._looking: asyncio.Task[bool] | None = None
        self._all_known = False
        self._hesitating = False
        self._at_once = self._due = 2 if rules.beside else 1

    async def run(self) -> P | None:
        """As `first_prize`. Then call `close`."""
        ends = self._began + self._rules.patience
        while True:
            self._ask()
            if not (pending := self._pending):
                return None
            timeout = max(0.0, ends - self._clock())
            done, _ = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in [each for each in self._asked if each in done]:
                if self._has_won(task):
                    return task.result()
            if self._looking in done:
                self._all_known, self._looking = not self._looking.result(), None
            if self._clock() >= ends:
                self._hesitating = True
                self._due = self._at_once = min((4 if self._rules.beside else 2) * self._at_once, _MOST)
                ends = self._clock() + self._rules.patience

    async def close(self) -> None:
        """End what is under way, and close what it gave all the same."""
        late, pending = list(self._asked), self._pending
        for task in pending:
            task.cancel()
        try:
            await asyncio.gather(*pending, return_exceptions=True)
            await self._entrants.aclose()
        except asyncio.CancelledError:
            if self.winner is not None:
                await self.winner.aclose()  # nobody will get it now
            raise
        finally:  # a gathering that is cancelled waits for its tasks too, but keeps what they gave to itself
            for task in late:
                if task.done() and not task.cancelled() and task.exception() is None:
                    await task.result().aclose()

    @property
    def _pending(self) -> list[asyncio.Task[Any]]:
        return [*self._asked, *([self._looking] if self._looking is not None else [])]

    def _ask(self) -> None:
        """Ask as many as are due; where there are not so many, look for others."""
        while self._due and len(self._asked) < _MOST and (holder := self._entrants.take(self._rank)):
            self._asked[asyncio.create_task(self._give(holder))] = (holder, self._clock())
            self._due -= 1
        # Where all that the router named have failed at once, it is asked again, who knows better than its lookup.
        worth_it = self._hesitating or self._rules.beside or (not self._asked and self._entrants.left)
        if self._due and worth_it and not self._all_known and self._looking is None:
            self._looking = asyncio.create_task(self._entrants.more())

    @property
    def _rank(self) -> int:
        """The highest rank of those that may be asked now."""
        looked = self._all_known or self._hesitating
        late = self._clock() - self._began >= _LAST_RESORT * self._rules.hedge_delay
        if not self._rules.beside and (late or (looked and not self._asked)):
            return RESTING
        return UNPROVEN if looked else HEALTHY

    def _has_won(self, task: asyncio.Task[P]) -> bool:
        holder, began = self._asked.pop(task)
        try:
            self.winner = task.result()
        except NotBetter:
            return False
        except PeerUnavailable as error:
            self._rules.failed(holder.peer, error)
        except Exception as error:
            name = holder.peer.id
            self._rules.log.exception("fetching from peer %s failed, which is a bug", name)
            self._rules.failed(
                holder.peer, PeerUnavailable(f"peer {name} can't be fetched from: {error!r}", FailureReason.BROKEN)
            )
        else:
            self._judge(self._clock() - began)
            return True
        self._due += 1
        return False

    def _judge(self, took: float) -> None:
        """Tell of those that have been waited for for much longer than the winner `took`."""
        before = self._clock() - max(self._rules.hedge_delay, MUCH_FASTER * took)
        for task, (holder, began) in self._asked.items():
            if began <= before and not task.done():
                self._rules.hesitated(holder.peer)
