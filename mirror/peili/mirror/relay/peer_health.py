"""Remembers how each peer did of late, whatever it was asked for: who failed rests for a while, and comes last."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from peili.mirror.errors import PeerUnavailable
from peili.mirror.limits import Limits
from peili.mirror.metrics import Metrics
from peili.mirror.peers import (
    FAILED_BROKEN,
    FAILED_SILENT,
    FAILED_SLOW,
    FAILED_UNREACHABLE,
    Holder,
)

_COUNTED = frozenset({FAILED_SILENT, FAILED_SLOW, FAILED_BROKEN, FAILED_UNREACHABLE})
"""Reasons that say something about the next request, for whatever content."""
_WEIGHT = 0.3
"""Of the latest measurement, in the mean of the rates."""
_LEAST_WAIT = 0.01
"""Seconds of waiting from which on a rate means something."""


@dataclass(slots=True)
class _Record:
    """How one peer did."""

    failures: int = 0
    rests_until: float = 0.0
    rate: float | None = None  # bytes per second of waiting for it; a mean that follows the latest


class PeerHealth:
    """Per peer, its failures in a row and the rate that it has shown.

    A peer that failed rests for ``failure_ttl`` seconds, twice as long after each further failure, and at most
    ``rest_max``. One success ends that. Holds as many peers as ``quarantine_entries``, and forgets the others, the one
    heard of longest ago first. Not thread-safe.
    """

    def __init__(
        self, limits: Limits, clock: Callable[[], float] = time.monotonic, *, metrics: Metrics | None = None
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def failed(self, peer_id: str, reason: str) -> None:
        """`peer_id` would not do. Failures while it rests count once: they are of the same moment."""
        record, now = self._record(peer_id), self._clock()
        if reason not in _COUNTED or record.rests_until > now:
            return
        pause = min(self._limits.failure_ttl * 2 ** min(record.failures, 32), self._limits.rest_max)
        record.failures += 1
        record.rests_until = now + pause

    def succeeded(self, peer_id: str) -> None:
        """`peer_id` sent all that it was asked for, in good time."""
        record = self._record(peer_id)
        record.failures, record.rests_until = 0, 0.0

    def measured(self, peer_id: str, count: int, waited: float) -> None:
        """`peer_id` sent `count` bytes, for which it was waited for `waited` seconds."""
        record, rate = self._record(peer_id), count / max(waited, _LEAST_WAIT)
        record.rate = rate if record.rate is None else record.rate + _WEIGHT * (rate - record.rate)

    def rate(self, peer_id: str) -> float | None:
        """Bytes per second that `peer_id` has shown; None where that is not known."""
        record = self._records.get(peer_id)
        return record.rate if record is not None else None

    def rests(self, peer_id: str) -> bool:
        """Whether `peer_id` is asked only where nobody else is left."""
        record = self._records.get(peer_id)
        return record is not None and record.rests_until > self._clock()

    def resting(self) -> list[str]:
        """The peers that rest now."""
        return [peer_id for peer_id in self._records if self.rests(peer_id)]

    def order(self, holders: Sequence[Holder]) -> tuple[Holder, ...]:
        """`holders`, those that rest last; otherwise as they were."""
        return tuple(sorted(holders, key=lambda holder: self.rests(holder.peer.id)))

    def _record(self, peer_id: str) -> _Record:
        record = self._records.setdefault(peer_id, _Record())
        self._records.move_to_end(peer_id)
        while len(self._records) > self._limits.quarantine_entries:
            self._records.popitem(last=False)
            self._metrics.limited.add("quarantine_entries")
        return record


class Outrun(PeerUnavailable):
    """The peer may go on later, but another holder is likely to be better now."""


Others: TypeAlias = Callable[[float], Awaitable[bool]]
"""Whether another holder is there that has shown more than so many bytes per second, or has not been tried."""


class Pull:
    """How fast one peer sends for one transfer, counting only the time that it was waited for: `slow`, where the last
    window of waiting gave less than ``slow_rate``, and then at what `rate`. `others` are the other holders.
    """

    def __init__(self, limits: Limits, others: Others) -> None:
        self.others = others
        self.slow = False
        self.rate = 0.0
        self.count = 0
        self.waited = 0.0
        self._limits = limits
        self._bytes = 0
        self._window = 0.0

    def note(self, count: int, waited: float) -> None:
        """`count` bytes came after `waited` seconds."""
        self.count += count
        self.waited += waited
        self._bytes += count
        self._window += waited
        if self._window >= self._limits.switch_delay:
            self.rate = self._bytes / self._window
            self.slow = self.rate < self._limits.slow_rate
            self._bytes, self._window = 0, 0.0

    @property
    def is_good(self) -> bool:
        """Whether what came, came in good time."""
        return self.waited < self._limits.hedge_delay or self.count >= self._limits.slow_rate * self.waited
