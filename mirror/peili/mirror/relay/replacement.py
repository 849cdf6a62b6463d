"""Watches a source while it is read. If it hesitates, other holders are tried, and a much faster one replaces it.

A trial requests the next bytes from another holder. Only its rate counts; its bytes are discarded. So the source may
recover during a trial, and no byte is lost.
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
from peili.mirror.relay.race import NotFaster
from peili.mirror.relay.scores import MUCH_FASTER, HolderScores
from peili.mirror.relay.source import Source

_SMALLEST_TRIAL, _LARGEST_TRIAL = 64 * KIB, MIB
"""The size of a trial in bytes."""
_TRIAL_BUFFER = 16 * KIB
_CHECKS_PER_DELAY = 3
"""How often a source is checked during a hedge delay."""
_MAX_TRIAL = 4
"""The time for trials in hedge delays, if the source still sends something."""
_PAUSE = 1.0
"""Seconds until the next trials if no holder was faster."""
_WAITING_SHARE = 0.8
"""If this host spent a smaller part of the time waiting for the source, the source is as fast as the runtime."""


class Replaced(PeerUnavailable):
    """Another holder is much faster now. The peer may be used again if no other remains."""


class SourceWatcher:
    """Watches one source, and tries other holders if it hesitates. Its one owner calls `aclose`.

    When a trial succeeds, `replacement` is set and the source is interrupted with `Replaced` (see `Source.interrupt`).

    Args:
        source: The source to watch.
        scores: Their hedge delay says how long the peer may send nothing.
        limits: ``hedge_delay`` and ``slow_rate``.
        log: For errors that are bugs.
        try_others: Returns a closed source of a holder that is much faster than the given bytes per second, or None. It
            is cancelled if the source recovers.

    Attributes:
        replacement: The peer to continue with, if one was found.
    """

    def __init__(
        self,
        source: Source,
        scores: HolderScores,
        limits: Limits,
        log: logging.Logger,
        try_others: Callable[[float], Coroutine[Any, Any, Source | None]],
    ) -> None:
        self.replacement: Peer | None = None
        self._source = source
        self._scores = scores
        self._limits = limits
        self._log = log
        self._try_others = try_others
        self._loop = asyncio.get_running_loop()
        self._samples = deque[tuple[float, int, float]]()  # time, bytes so far, seconds of waiting so far
        self._trial: asyncio.Task[Source | None] | None = None
        self._rate = 0.0
        self._next_trial = 0.0
        self._schedule_check()

    async def aclose(self) -> None:
        """Stop watching. Idempotent."""
        self._timer.cancel()
        if (trial := self._trial) is not None:
            trial.cancel()
            await asyncio.wait([trial])

    def _schedule_check(self) -> None:
        self._due = self._loop.time() + self._scores.hedge_delay(self._source.peer.id) / _CHECKS_PER_DELAY
        self._timer = self._loop.call_at(self._due, self._check)

    def _check(self) -> None:
        """Take a sample. Start a trial if the source hesitates; cancel it if the source has recovered."""
        progress, now = self._source.progress(), self._loop.time()
        if progress is None or now - self._due > self._limits.hedge_delay / _CHECKS_PER_DELAY:
            self._samples.clear()  # the request waits for its turn, or this host was suspended: the rate is not known
        else:
            self._samples.append((now, *progress))
            while len(self._samples) > 1 and self._samples[1][0] <= now - self._limits.hedge_delay:
                self._samples.popleft()
            if not self._is_hesitating(now):
                if self._trial is not None:
                    self._trial.cancel()
            elif self._trial is None and now >= self._next_trial:
                self._trial = asyncio.create_task(self._run_trial())
                self._trial.add_done_callback(self._trial_ended)
        self._schedule_check()

    def _is_hesitating(self, now: float) -> bool:
        """Return whether no byte arrived during the hedge delay of the peer, or too few during the general one."""
        if self._rate_since(now - self._scores.hedge_delay(self._source.peer.id)) == 0:
            self._rate = 0.0
            return True
        rate = self._rate_since(now - self._limits.hedge_delay)
        if rate is None:
            return False
        self._rate = rate
        remaining = self._source.span.length - self._samples[-1][1]
        return rate < self._limits.slow_rate and remaining > 2 * self._limits.hedge_delay * rate

    def _rate_since(self, since: float) -> float | None:
        """Return the bytes per second; None if there is no sample, or if the runtime did not wait for the source."""
        before = [sample for sample in self._samples if sample[0] <= since]
        if not before:
            return None
        (then, bytes_then, waited_then), (now, bytes_now, waited_now) = before[-1], self._samples[-1]
        if waited_now - waited_then < _WAITING_SHARE * (now - then):
            return None
        return (bytes_now - bytes_then) / (waited_now - waited_then)

    async def _run_trial(self) -> Source | None:
        """Try other holders. While the source sends, the time is short: trials use the same link, which may be slow."""
        try:
            async with asyncio.timeout(_MAX_TRIAL * self._limits.hedge_delay if self._rate else None):
                return await self._try_others(self._rate)
        except TimeoutError:
            return None

    def _trial_ended(self, trial: asyncio.Task[Source | None]) -> None:
        self._trial = None
        if trial.cancelled():
            return
        self._next_trial = self._loop.time() + _PAUSE
        if (error := trial.exception()) is not None:
            self._log.error("trying other holders failed, which is a bug", exc_info=error)
            return
        if (faster := trial.result()) is None:
            return
        self._timer.cancel()
        self.replacement, peer = faster.peer, self._source.peer
        if self._rate:
            problem, reason = f"sends {self._rate:.0f} bytes a second", FailureReason.SLOW
        else:
            problem, reason = "sends nothing", FailureReason.SILENT
        self._source.interrupt(Replaced(f"peer {peer.id} {problem}, and {faster.peer.id} is much faster", reason))


def trial_range(start: int, stop: int | None, failures: int = 0) -> ByteRange:
    """Return the range of a trial.

    Args:
        start: The first byte.
        stop: The end of the wanted bytes; None if it is open.
        failures: The number of recent failures. A trial is four times as large for each of them.
    """
    end = start + min(_SMALLEST_TRIAL * 4**failures, _LARGEST_TRIAL)
    return ByteRange(start, (end if stop is None else min(end, stop)) - 1)


async def measure(source: Source, rate: float, scores: HolderScores) -> Source:
    """Read `source` to its end, discard the bytes, and record the rate. Closes the source in any case.

    Args:
        source: The source.
        rate: Bytes per second that the source must clearly exceed.
        scores: Where the rate is recorded.

    Returns:
        The closed source. Its peer passed the trial.

    Raises:
        NotFaster: The source is not much faster than `rate` bytes per second.
        PeerUnavailable: The source failed.
    """
    started, count, buffer = time.monotonic(), 0, memoryview(bytearray(_TRIAL_BUFFER))
    try:
        while source.remaining:
            count += await source.readinto(buffer)
    finally:
        await source.aclose()
        seconds = time.monotonic() - started
        scores.record_rate(source.peer.id, count, seconds)
    if count < MUCH_FASTER * rate * seconds:
        raise NotFaster(f"peer {source.peer.id} is not much faster")
    return source
