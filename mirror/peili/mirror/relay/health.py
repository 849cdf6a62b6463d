"""What we know of each peer's speed and failures, whatever content it was asked for."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from peili.mirror.errors import FailureReason
from peili.mirror.limits import KIB, Limits

WELL, UNPROVEN, RESTS = range(3)
"""How soon a peer is asked; see `Health.rank`."""
MUCH = 4
"""Times as fast as another is much faster."""
_MOST = 4096
"""Peers remembered."""
_FORGOTTEN = 600.0
"""Seconds after which a peer that nobody heard of is forgotten, as one that left."""
_LIGHT = 0.2
"""Of the rest for a failure, what one gets that may have nothing wrong with it."""
_NOTED = 3
"""Recent failures that are counted."""
_WEIGHT = 0.5
"""Of the latest measurement, in the mean of the rates."""
_TELLING = 64 * KIB
"""Bytes from which on a rate says something, however soon they came."""
_LEAST = 0.001
"""Seconds: what took less was here already."""


@dataclass(slots=True)
class _Record:
    """What is known of one peer."""

    heard: float
    failures: int = 0  # in a row
    failed: float = 0.0  # when it last did
    rests_until: float = 0.0
    rate: float | None = None  # bytes per second of waiting for it
    successes: int = 0


class Health:
    """One record for each peer, of all transfers. Not thread-safe.

    A peer that failed rests for ``failure_ttl`` seconds, twice as long after each further failure, ``rest_max`` at
    most. One that hesitated, refused or was busy rests for a fifth of that. A success ends the rest. Records are
    bounded, and those of peers that were not heard of for ten minutes are dropped.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._records: OrderedDict[str, _Record] = OrderedDict()  # heard of longest ago first
        self._failures: deque[float] = deque(maxlen=_NOTED)
        self._proven: set[str] = set()  # those that sent all that they were asked for, and have not failed since

    def __len__(self) -> int:
        """How many peers are remembered."""
        return len(self._records)

    def failed(self, peer_id: str, reason: str) -> None:
        """`peer_id` would not do for some content."""
        if reason in {FailureReason.REFUSED, FailureReason.BUSY}:
            self._rest(peer_id, _LIGHT)
        else:
            self._failures.append(self._clock())
            self._rest(peer_id, 1.0)

    def hesitated(self, peer_id: str) -> None:
        """`peer_id` took so much longer than another that it was let go."""
        self._failures.append(self._clock())
        self._rest(peer_id, _LIGHT)

    def succeeded(self, peer_id: str, began: float) -> None:
        """`peer_id` sent all that it was asked for at `began`, by the clock. What failed since then is not mended."""
        record = self._record(peer_id)
        if record.failed > began:
            return
        record.successes += 1
        record.failures, record.rests_until = 0, 0.0
        if not self.is_slow(peer_id):
            self._proven.add(peer_id)

    def measured(self, peer_id: str, count: int, seconds: float) -> None:
        """`peer_id` sent `count` bytes, for which it was waited for `seconds`. Too little to tell is ignored."""
        if count < _TELLING and seconds < self._limits.hedge_delay:
            return
        record, rate = self._record(peer_id), count / max(seconds, _LEAST)
        record.rate = rate if record.rate is None else record.rate + _WEIGHT * (rate - record.rate)

    def rate(self, peer_id: str) -> float | None:
        """Bytes per second that `peer_id` has shown; None where that is not known."""
        record = self._records.get(peer_id)
        return record.rate if record is not None else None

    def is_slow(self, peer_id: str) -> bool:
        """Whether `peer_id` has shown less than ``slow_rate``, and another peer much more."""
        rate = self.rate(peer_id)
        if rate is None or rate >= self._limits.slow_rate:
            return False
        return any(each.rate is not None and each.rate > MUCH * rate for each in self._records.values())

    def rank(self, peer_id: str) -> int:
        """How soon to ask `peer_id`: the lower, the sooner.

        RESTS: where nobody else is left. UNPROVEN: where no proven one can be had; so it is only for ``failure_ttl``
        seconds after a failure of anybody, since the next one may fail in the same way. Else WELL.
        """
        record = self._records.get(peer_id)
        if record is not None and record.rests_until > self._clock():
            return RESTS
        doubtful = self._proven and peer_id not in self._proven and self.recent
        return UNPROVEN if doubtful else WELL

    def successes(self, peer_id: str) -> int:
        """How often `peer_id` sent all that it was asked for."""
        record = self._records.get(peer_id)
        return record.successes if record is not None else 0

    def patience(self, peer_id: str | None = None) -> float:
        """Seconds of silence after which others are asked: the fewer, the more failed of late, but for proven ones."""
        return self._limits.hedge_delay / (1 if peer_id in self._proven else 1 + self.recent)

    @property
    def recent(self) -> int:
        """How many failures there were in the last ``failure_ttl`` seconds, three at most."""
        since = self._clock() - self._limits.failure_ttl
        return sum(each > since for each in self._failures)

    def _rest(self, peer_id: str, share: float) -> None:
        """Let `peer_id` rest. What fails while it rests is of the same moment, and counts once."""
        record, now = self._record(peer_id), self._clock()
        self._proven.discard(peer_id)
        record.failed = now
        if record.rests_until <= now:
            record.failures += 1
        pause = share * self._limits.failure_ttl * 2 ** min(record.failures - 1, 30)
        record.rests_until = max(record.rests_until, now + min(pause, self._limits.rest_max))

    def _record(self, peer_id: str) -> _Record:
        now = self._clock()
        record = self._records.setdefault(peer_id, _Record(now))
        record.heard = now
        self._records.move_to_end(peer_id)
        while len(self._records) > _MOST or next(iter(self._records.values())).heard + _FORGOTTEN < now:
            forgotten, _ = self._records.popitem(last=False)
            self._proven.discard(forgotten)
        return record
