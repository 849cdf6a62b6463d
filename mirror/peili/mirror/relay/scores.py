"""Remembers how fast each peer was, and how often it failed, over all blobs."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from peili.mirror.errors import FailureReason
from peili.mirror.limits import KIB, Limits

HEALTHY, UNPROVEN, RESTING = range(3)
"""The ranks of peers; see `HolderScores.rank`."""
MUCH_FASTER = 4
"""A peer is much faster than another if its rate is this many times the other's."""
_MAX_PEERS = 4096
"""The number of peers to remember."""
_FORGET_AFTER = 600.0
"""Seconds without a request after which a peer is forgotten. It may no longer exist."""
_LIGHT_REST = 0.2
"""The part of a full rest for a peer that may work well: it refused, was busy, or hesitated."""
_MAX_RECENT = 3
"""The largest number of recent failures that counts."""
_NEWEST_WEIGHT = 0.5
"""The weight of the newest measurement in the mean rate."""
_MIN_SAMPLE = 64 * KIB
"""From this many bytes on, a rate counts however short the time was."""
_MIN_SECONDS = 0.001
"""Bytes that took less time had arrived before this host waited for them."""


@dataclass(slots=True)
class _Score:
    """What is known of one peer."""

    updated: float
    failures: int = 0  # in a row
    failed_at: float = 0.0
    rests_until: float = 0.0
    rate: float | None = None  # bytes per second while a transfer waited for the peer
    successes: int = 0


class HolderScores:
    """The speed and the failures of each peer, over all transfers. Not thread-safe.

    A peer that failed *rests* for ``failure_ttl`` seconds: it is asked only if no other peer remains. The time doubles
    with each further failure, up to ``rest_max``. A peer that hesitated, refused or was busy rests for a fifth of the
    time. A success ends the rest. The table is bounded. A peer that was not used for ten minutes is forgotten.

    Args:
        limits: ``failure_ttl``, ``rest_max``, ``hedge_delay`` and ``slow_rate``.
        clock: Seconds that never go back.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._scores: OrderedDict[str, _Score] = OrderedDict()  # least recently updated first
        self._recent: deque[float] = deque(maxlen=_MAX_RECENT)  # when the latest failures were
        self._proven: set[str] = set()  # peers that sent all that they were asked for, and have not failed since

    def __len__(self) -> int:
        """Return how many peers are remembered."""
        return len(self._scores)

    def record_failure(self, peer_id: str, reason: str) -> None:
        """Note that `peer_id` failed for some content; `reason` is a `FailureReason`."""
        if reason in {FailureReason.REFUSED, FailureReason.BUSY}:
            self._rest(peer_id, _LIGHT_REST)
        else:
            self._recent.append(self._clock())
            self._rest(peer_id, 1.0)

    def record_hesitation(self, peer_id: str) -> None:
        """Note that `peer_id` was dropped because another peer was much faster."""
        self._recent.append(self._clock())
        self._rest(peer_id, _LIGHT_REST)

    def record_success(self, peer_id: str, started: float) -> None:
        """Note that `peer_id` sent all that was requested, unless it failed after `started`, by the clock."""
        score = self._score(peer_id)
        if score.failed_at > started:
            return
        score.successes += 1
        score.failures, score.rests_until = 0, 0.0
        if not self.is_slow(peer_id):
            self._proven.add(peer_id)

    def record_rate(self, peer_id: str, count: int, seconds: float) -> None:
        """Note that `peer_id` sent `count` bytes in `seconds` of waiting for it. Small samples are ignored."""
        if count < _MIN_SAMPLE and seconds < self._limits.hedge_delay:
            return
        score, rate = self._score(peer_id), count / max(seconds, _MIN_SECONDS)
        score.rate = rate if score.rate is None else score.rate + _NEWEST_WEIGHT * (rate - score.rate)

    def rate(self, peer_id: str) -> float | None:
        """Return the bytes per second that `peer_id` sends; None if that is not known."""
        score = self._scores.get(peer_id)
        return score.rate if score is not None else None

    def is_slow(self, peer_id: str) -> bool:
        """Return whether `peer_id` sends less than ``slow_rate``, and some other peer sends much faster."""
        rate = self.rate(peer_id)
        if rate is None or rate >= self._limits.slow_rate:
            return False
        return any(score.rate is not None and score.rate > MUCH_FASTER * rate for score in self._scores.values())

    def rank(self, peer_id: str) -> int:
        """Return the rank of `peer_id`. Peers of a lower rank are asked first.

        Returns:
            `RESTING` if it is asked only if no other peer remains. `UNPROVEN` if proven peers are preferred, because
            another peer failed in the last ``failure_ttl`` seconds and this one may fail in the same way. `HEALTHY`
            otherwise.
        """
        score = self._scores.get(peer_id)
        if score is not None and score.rests_until > self._clock():
            return RESTING
        is_unproven = self._proven and peer_id not in self._proven and self.recent_failures
        return UNPROVEN if is_unproven else HEALTHY

    def successes(self, peer_id: str) -> int:
        """Return how often `peer_id` sent all that was requested. Resting peers with more successes are asked first."""
        score = self._scores.get(peer_id)
        return score.successes if score is not None else 0

    def hedge_delay(self, peer_id: str | None = None) -> float:
        """Return the seconds of silence after which other peers are asked.

        Recent failures make it shorter, unless `peer_id` is proven.
        """
        return self._limits.hedge_delay / (1 if peer_id in self._proven else 1 + self.recent_failures)

    @property
    def recent_failures(self) -> int:
        """The number of failures of all peers in the last ``failure_ttl`` seconds, at most three."""
        since = self._clock() - self._limits.failure_ttl
        return sum(failed_at > since for failed_at in self._recent)

    def _rest(self, peer_id: str, share: float) -> None:
        """Let `peer_id` rest. Its failures while it rests count as one: they may have one cause."""
        score, now = self._score(peer_id), self._clock()
        self._proven.discard(peer_id)
        score.failed_at = now
        if score.rests_until <= now:
            score.failures += 1
        pause = share * self._limits.failure_ttl * 2 ** min(score.failures - 1, 30)
        score.rests_until = max(score.rests_until, now + min(pause, self._limits.rest_max))

    def _score(self, peer_id: str) -> _Score:
        now = self._clock()
        score = self._scores.setdefault(peer_id, _Score(now))
        score.updated = now
        self._scores.move_to_end(peer_id)
        while len(self._scores) > _MAX_PEERS or next(iter(self._scores.values())).updated + _FORGET_AFTER < now:
            forgotten, _ = self._scores.popitem(last=False)
            self._proven.discard(forgotten)
        return score
