"""Looks after a source while it is read: where it hesitates, other holders are tried beside it.

A try is a small request of its own for what comes next. Nothing of it is used but how long it took, so a source that
goes on loses no byte, and one that is left is never read again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.limits import KIB, MIB, Limits
from peili.mirror.oci.ranges import ByteRange
from peili.mirror.peer_api.peers import Peer
from peili.mirror.relay.race import NotBetter
from peili.mirror.relay.reputation import MUCH_FASTER, HolderScores
from peili.mirror.relay.source import Source

_LITTLE, _MUCH = 64 * KIB, MIB
"""Bytes that a holder is tried with: the fewest, and the most."""
_PIECE = 16 * KIB
"""Bytes of a try that are read at once."""
_LOOKS = 3
"""How often a source is looked at while patience lasts."""
_MOMENT = 4
"""Times `hedge_delay`."""
_PAUSE = 1.0
"""Seconds until others are tried again, where none of them was better."""
_WAITING = 0.8
"""Of the time. A source that was waited for less, is as fast as what it is read for."""


class Outrun(PeerUnavailable):
    """Another holder is much faster now. The peer may still be used when there is nobody else."""


class Tried:
    """A holder that has shown to be much faster."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    async def aclose(self) -> None:
        """There is nothing to close."""


class Contest:
    """The tries beside one `source`. One owner, who calls `aclose`.

    `try_others` gives the one that is much faster than so many bytes per second, or None; it is cancelled where the
    source goes on. `source` is left then (see `Source.leave`), and `winner` is whom to go on with.
    """

    def __init__(
        self,
        source: Source,
        health: HolderScores,
        limits: Limits,
        log: logging.Logger,
        try_others: Callable[[float], Coroutine[Any, Any, Tried | None]],
    ) -> None:
        self.winner: Peer | None = None
        self._source = source
        self._health = health
        self._limits = limits
        self._log = log
        self._try_others = try_others
        self._loop = asyncio.get_running_loop()
        self._seen = deque[tuple[float, int, float]]()  # when, how many bytes, how long waited for
        self._tries: asyncio.Task[Tried | None] | None = None
        self._rate = 0.0
        self._not_before = 0.0
        self._wind()

    async def aclose(self) -> None:
        """End it. Idempotent."""
        self._timer.cancel()
        if (tries := self._tries) is not None:
            tries.cancel()
            await asyncio.wait([tries])

    def _wind(self) -> None:
        self._due = self._loop.time() + self._patience / _LOOKS
        self._timer = self._loop.call_at(self._due, self._look)

    @property
    def _patience(self) -> float:
        return self._health.hedge_delay(self._source.peer.id)

    def _look(self) -> None:
        progress, now = self._source.progress(), self._loop.time()
        if progress is None or now - self._due > self._limits.hedge_delay / _LOOKS:
            self._seen.clear()  # the peer is not asked now, or this host stood still: nothing can be told
        else:
            self._seen.append((now, *progress))
            self._decide(now)
        self._wind()

    def _decide(self, now: float) -> None:
        while len(self._seen) > 1 and self._seen[1][0] <= now - self._limits.hedge_delay:
            self._seen.popleft()
        if not self._hesitates(now):
            if self._tries is not None:
                self._tries.cancel()
        elif self._tries is None and now >= self._not_before:
            self._tries = asyncio.create_task(self._try())
            self._tries.add_done_callback(self._tried)

    def _hesitates(self, now: float) -> bool:
        """Whether nothing came for as long as patience lasts, or too little in the time of a hedge."""
        if self._rate_since(now - self._patience) == 0:
            self._rate = 0.0
            return True
        rate = self._rate_since(now - self._limits.hedge_delay)
        if rate is None:
            return False
        self._rate = rate
        left = self._source.span.length - self._seen[-1][1]
        return rate < self._limits.slow_rate and left > 2 * self._limits.hedge_delay * rate

    def _rate_since(self, since: float) -> float | None:
        """Bytes per second; None where that was not seen, or the source was not waited for."""
        before = [each for each in self._seen if each[0] <= since]
        if not before:
            return None
        (then, had, waited), (now, has, has_waited) = before[-1], self._seen[-1]
        if has_waited - waited < _WAITING * (now - then):
            return None
        return (has - had) / (has_waited - waited)

    async def _try(self) -> Tried | None:
        """Where something comes, others take of the same line for a moment only: it may be that which is slow."""
        try:
            async with asyncio.timeout(_MOMENT * self._limits.hedge_delay if self._rate else None):
                return await self._try_others(self._rate)
        except TimeoutError:
            return None

    def _tried(self, tries: asyncio.Task[Tried | None]) -> None:
        self._tries = None
        if tries.cancelled():
            return
        self._not_before = self._loop.time() + _PAUSE
        if (error := tries.exception()) is not None:
            self._log.error("trying other holders failed, which is a bug", exc_info=error)
            return
        if (tried := tries.result()) is None:
            return
        self._timer.cancel()
        self.winner, peer = tried.peer, self._source.peer
        if self._rate:
            what, reason = f"sends {self._rate:.0f} bytes a second", FailureReason.SLOW
        else:
            what, reason = "sends nothing", FailureReason.SILENT
        self._source.interrupt(Outrun(f"peer {peer.id} {what}, and {self.winner.id} is much faster", reason))


def part_to_try(start: int, stop: int | None, failures: int = 0) -> ByteRange:
    """What to try a holder with, from byte `start` on and before `stop`; the more, the more `failures` there were."""
    end = start + min(_LITTLE * 4**failures, _MUCH)
    return ByteRange(start, (end if stop is None else min(end, stop)) - 1)


async def try_out(source: Source, rate: float, health: HolderScores) -> Tried:
    """Read `source` to its end, and forget what comes. Raises NotBetter where `rate` is not much slower, and
    PeerUnavailable. Closes it in any case.
    """
    began, count, room = time.monotonic(), 0, memoryview(bytearray(_PIECE))
    try:
        while source.left:
            count += await source.readinto(room)
    finally:
        await source.aclose()
        took = time.monotonic() - began
        health.record_rate(source.peer.id, count, took)
    if count < MUCH_FASTER * rate * took:
        raise NotBetter(f"peer {source.peer.id} is not much faster")
    return Tried(source.peer)
