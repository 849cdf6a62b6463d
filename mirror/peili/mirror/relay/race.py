"""Starts with the best holder, and asks more of them when it hesitates; the first with enough content wins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

from peili.mirror.errors import PeerUnavailable
from peili.mirror.peers import FAILED_BROKEN, Holder, Peer
from peili.mirror.relay.source import Source

Opener = Callable[[Holder], Coroutine[Any, Any, Source]]
Failed = Callable[[Peer, PeerUnavailable], None]
Later = Callable[[], Coroutine[Any, Any, Sequence[Holder]]]

_MOST = 8
"""Holders that are asked at the same moment."""


class _Try:
    """One holder being asked. `source` is there once its first bytes are."""

    def __init__(self, holder: Holder, open_: Opener, *, fill: bool) -> None:
        self.holder = holder
        self.source: Source | None = None
        self.began = asyncio.get_running_loop().time()
        self.ended = self.began
        self.over = False
        self.task = asyncio.create_task(self._run(open_, fill))

    async def _run(self, open_: Opener, fill: bool) -> Source:
        self.source = await open_(self.holder)
        if fill and not self.over:
            await self.source.fill()
        self.ended = asyncio.get_running_loop().time()
        return self.source


async def first_source(
    holders: Sequence[Holder],
    open_: Opener,
    failed: Failed,
    hedge_delay: float,
    log: logging.Logger,
    *,
    later: Later | None = None,
    hesitated: Callable[[Peer], None] = lambda _: None,
) -> Source | None:
    """The source of the first holder that has bytes in hand; None when all failed.

    Another holder is asked when one failed, and when none has sent enough within `hedge_delay` seconds: then two, then
    four and so on, and `later` is asked once for further holders. Where all have been asked, the one that has sent
    most wins. `failed` hears of each that would not do, and `hesitated` of each that lost a
    race that took longer; a failure that is no peer's, and so a bug, goes to `log` as well, and ends no other's try.
    Those that came too late are closed.
    """
    race = _Race(holders, open_, failed, log, later)
    try:
        return await race.run(hedge_delay, hesitated)
    finally:
        await race.close()


class _Race:
    """The state of one race: who has been asked, who is still to be, and who won."""

    def __init__(
        self, holders: Sequence[Holder], open_: Opener, failed: Failed, log: logging.Logger, later: Later | None
    ) -> None:
        self._waiting = list(holders)
        self._open = open_
        self._failed = failed
        self._log = log
        self._later = later
        self._fill = len(holders) > 1
        self._tries: dict[asyncio.Task[Source], _Try] = {}
        self._more: asyncio.Task[Sequence[Holder]] | None = None
        self._at_once = self._due = 1
        self._winner: Source | None = None

    async def run(self, hedge_delay: float, hesitated: Callable[[Peer], None]) -> Source | None:
        """As `first_source`. Then call `close`."""
        while self._waiting or self._tries or self._more:
            self._ask()
            done, _ = await asyncio.wait(
                {*self._tries, *([self._more] if self._more else [])},
                timeout=hedge_delay if self._waiting or self._later or self._fill else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if best := await self._best_of([self._tries[task] for task in self._tries if task in done]):
                self._winner = best.source
                _tell(self._tries.values(), best, best.ended - hedge_delay, hesitated)
            elif self._more in done:
                self._waiting += _found(self._more, self._log)
                self._more, self._due = None, self._at_once
            elif not done:
                self._hedge()
            if self._winner is not None:
                break
        return self._winner

    async def close(self) -> None:
        """End all that lost."""
        if self._more is not None:
            self._more.cancel()
            await asyncio.wait([self._more])
        await _close(self._tries.values(), self._winner)

    def _ask(self) -> None:
        for holder in self._waiting[: self._due]:
            attempt = _Try(holder, self._open, fill=self._fill)
            self._tries[attempt.task] = attempt
        del self._waiting[: self._due]
        self._due = 0

    async def _best_of(self, done: Sequence[_Try]) -> _Try | None:
        """One that is ready; those that failed are told, and another is asked for each."""
        for attempt in done:
            if _outcome(attempt, self._failed, self._log):
                return attempt
            del self._tries[attempt.task]
            self._due += 1
            if attempt.source is not None:
                await attempt.source.aclose()
        return None

    def _hedge(self) -> None:
        """They all hesitate."""
        if self._later is not None:
            self._more, self._later = asyncio.create_task(self._later()), None
        elif not self._waiting and self._more is None:
            opened = [each.source for each in self._tries.values() if each.source is not None]
            self._winner = max(opened, key=lambda source: source.early, default=None)
        self._at_once = min(2 * self._at_once, _MOST)
        self._due = self._at_once


def _found(more: asyncio.Task[Sequence[Holder]], log: logging.Logger) -> Sequence[Holder]:
    if more.cancelled():
        return ()
    if (error := more.exception()) is not None:
        log.warning("no further holders can be had: %r", error)
        return ()
    return more.result()


def _tell(tries: Collection[_Try], best: _Try, before: float, hesitated: Callable[[Peer], None]) -> None:
    """Tell of all that lost, where the first of them was asked before `before`: they are asked last for a while."""
    if min(each.began for each in tries) <= before:
        for each in tries:
            if each is not best:
                hesitated(each.holder.peer)


def _outcome(attempt: _Try, failed: Failed, log: logging.Logger) -> bool:
    peer = attempt.holder.peer
    try:
        attempt.task.result()
    except PeerUnavailable as error:
        failed(peer, error)
    except Exception as error:
        log.exception("fetching from peer %s failed, which is a bug", peer.id)
        failed(peer, PeerUnavailable(f"peer {peer.id} can't be fetched from: {error!r}", FAILED_BROKEN))
    else:
        return True
    return False


async def _close(tries: Collection[_Try], winner: Source | None) -> None:
    """End `tries`, and close what they opened all the same, but for the `winner`."""
    tasks = [each.task for each in tries]
    for each in tries:
        each.over = True
        each.task.cancel()
    try:
        await asyncio.gather(*tasks, return_exceptions=True)
    except asyncio.CancelledError:
        if winner is not None:
            await winner.aclose()  # nobody will get it now
        raise
    finally:  # a gathering that is cancelled waits for its tasks too, but keeps what they gave to itself
        for each in tries:
            if each.source is not None and each.source is not winner:
                await each.source.aclose()
