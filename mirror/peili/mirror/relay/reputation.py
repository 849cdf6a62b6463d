"""Remembers how peers behaved in earlier transfers: per blob (`Blame`), and over all blobs (`HolderScores`)."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from peili.mirror.errors import FailureReason
from peili.mirror.limits import KIB, Limits
from peili.mirror.metrics.counters import Metrics
from peili.mirror.oci.references import Digest

_TRANSIENT_REASONS = frozenset({FailureReason.BUSY, FailureReason.REFUSED, FailureReason.UNREACHABLE})
"""`Blame` does not remember these reasons: the next request for the same blob may succeed."""

IN_FLIGHT = ""
"""Stands for the id of a peer that was still receiving the content when it sent bytes: it passed on those of others."""
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
_MAX_CUTS = 5
"""How often a runtime that fetches in vain is cut off. containerd gives up after four cuts at one byte."""
_MAX_RECENT = 3
"""The largest number of recent failures that counts."""
_NEWEST_WEIGHT = 0.5
"""The weight of the newest measurement in the mean rate."""
_MIN_SAMPLE = 64 * KIB
"""From this many bytes on, a rate counts however short the time was."""
_MIN_SECONDS = 0.001
"""Bytes that took less time had arrived before this host waited for them."""


class Blame:
    """Which peers failed for which blob, and of which blobs the runtime has wrong bytes.

    - `record`: A peer failed. If it sent wrong bytes, it is quarantined: it is not asked for the blob for
      ``quarantine_ttl`` seconds. If it stalled or ended early, it is not asked for ``failure_ttl`` seconds.
    - `doubt`: A peer is one of several that may have sent wrong bytes in the same transfer.
    - `suspect`: A peer sent unverified bytes that the runtime now has. They may turn out to be wrong later.
    - `poison`: The runtime has wrong bytes.
    - `fetch_in_vain`: It fetches the rest in vain, because its unfinished copy was removed.
    - `bar_in_flight`: The blob is read only from peers that have the whole.
    - `bar_link`: It is read from all peers again, except from two of them while they receive it.

    All tables are bounded. Not thread-safe.

    Args:
        limits: ``quarantine_ttl``, ``failure_ttl`` and ``quarantine_entries``.
        clock: Seconds that never go back.
        metrics: Counts failures and quarantines.
    """

    def __init__(
        self, limits: Limits, clock: Callable[[], float] = time.monotonic, *, metrics: Metrics | None = None
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._excluded: OrderedDict[tuple[Digest, str], tuple[float, str]] = OrderedDict()  # until when, and why
        self._poisoned: OrderedDict[Digest, float] = OrderedDict()
        self._in_vain: OrderedDict[Digest, tuple[int, int]] = OrderedDict()  # the size, and how often it was told
        self._suspects: OrderedDict[Digest, dict[str, float]] = OrderedDict()
        self._barred: OrderedDict[Digest, float] = OrderedDict()  # until when
        self._barred_peers: OrderedDict[Digest, dict[str, float]] = OrderedDict()
        self._doubted: OrderedDict[tuple[Digest, str], float] = OrderedDict()

    def record(self, digest: Digest, peer_id: str, reason: str) -> None:
        """Note that `peer_id` failed for `digest`.

        Args:
            digest: The blob.
            peer_id: The id of the peer.
            reason: A `FailureReason`.
        """
        self._metrics.failures.add(reason)
        if reason in _TRANSIENT_REASONS:
            return
        ttl = self._limits.quarantine_ttl if reason == FailureReason.WRONG else self._limits.failure_ttl
        until = self._clock() + ttl
        if until < self._excluded.get((digest, peer_id), (0.0, ""))[0]:
            return  # a less serious failure does not shorten a quarantine
        if reason == FailureReason.WRONG:
            self._metrics.quarantines.add()
        self._exclude(digest, peer_id, until, reason)

    def doubt(self, digest: Digest, peer_id: str) -> None:
        """Note that `peer_id` is one of several that may have sent wrong bytes of `digest`.

        It is not asked for ``failure_ttl`` seconds, and then asked last.
        """
        self._metrics.failures.add(FailureReason.WRONG)
        now = self._clock()
        until = now + self._limits.failure_ttl
        if until > self._excluded.get((digest, peer_id), (0.0, ""))[0]:
            self._exclude(digest, peer_id, until, FailureReason.WRONG)
        self._remember(self._doubted, (digest, peer_id), now + self._limits.quarantine_ttl)

    def is_doubted(self, digest: Digest, peer_id: str) -> bool:
        """Return whether `peer_id` may have sent wrong bytes of `digest` in the last ``quarantine_ttl`` seconds."""
        return self._doubted.get((digest, peer_id), 0.0) > self._clock()

    def excluded(self, digest: Digest) -> dict[str, str]:
        """Return the ids of the peers not to ask for `digest` now, each with the reason; see `Want.failed`."""
        now = self._clock()
        for key in [key for key, (until, _) in self._excluded.items() if until <= now]:
            del self._excluded[key]
        return {peer_id: reason for (blamed, peer_id), (_, reason) in self._excluded.items() if blamed == digest}

    def suspect(self, digest: Digest, peer_ids: Collection[str]) -> None:
        """Note, for ``quarantine_ttl`` seconds, that the runtime has unverified bytes of `digest` from these peers.

        Args:
            digest: The blob.
            peer_ids: The ids of the peers, or `IN_FLIGHT`.
        """
        if not peer_ids:
            return
        until = self._clock() + self._limits.quarantine_ttl
        suspects = {**self._suspects.get(digest, {}), **dict.fromkeys(peer_ids, until)}
        self._remember(self._suspects, digest, suspects)

    def suspects(self, digest: Digest) -> frozenset[str]:
        """Return the ids of the peers that may be to blame if the digest of the whole content is wrong."""
        now = self._clock()
        return frozenset(peer_id for peer_id, until in self._suspects.get(digest, {}).items() if until > now)

    def poison(self, digest: Digest) -> None:
        """Note that the runtime has wrong bytes of `digest`, so that it cannot continue."""
        self._remember(self._poisoned, digest, self._clock() + self._limits.quarantine_ttl)

    def fetch_in_vain(self, digest: Digest, size: int) -> None:
        """Note that the runtime's unfinished copy of `digest`, which has `size` bytes as a whole, was removed."""
        self._remember(self._in_vain, digest, (size, 0))

    def next_cut(self, digest: Digest) -> int | None:
        """Return the size of content of which the runtime fetches the rest in vain.

        Returns:
            None if it does not, or if this was returned `_MAX_CUTS` times: this runtime does not give up.
        """
        size, cuts = self._in_vain.get(digest, (0, _MAX_CUTS))
        if not self.is_poisoned(digest) or cuts >= _MAX_CUTS:
            return None
        self._in_vain[digest] = size, cuts + 1
        return size

    def bar_in_flight(self, digest: Digest, seconds: float) -> None:
        """Let nobody read `digest` from peers that still receive it, for this time."""
        self._remember(self._barred, digest, self._clock() + seconds)

    def is_barred_in_flight(self, digest: Digest) -> bool:
        """Return whether `digest` may not be read from peers that still receive it."""
        return self._barred.get(digest, 0.0) > self._clock()

    def bar_link(self, digest: Digest, peer_ids: Collection[str]) -> None:
        """End `bar_in_flight`, because a wrong byte of `digest` is known to have entered between these peers.

        For ``quarantine_ttl`` seconds, they are not asked for `digest` while they receive it.
        """
        until = self._clock() + self._limits.quarantine_ttl
        self._barred.pop(digest, None)
        barred = {**self._barred_peers.get(digest, {}), **dict.fromkeys(peer_ids, until)}
        self._remember(self._barred_peers, digest, barred)

    def barred_peers(self, digest: Digest) -> frozenset[str]:
        """Return the ids of the peers that are not asked for `digest` while they receive it."""
        now = self._clock()
        return frozenset(peer_id for peer_id, until in self._barred_peers.get(digest, {}).items() if until > now)

    def clear(self, digest: Digest) -> None:
        """Forget the wrong bytes and the suspects, because the runtime starts `digest` from the beginning."""
        self._poisoned.pop(digest, None)
        self._in_vain.pop(digest, None)
        self._suspects.pop(digest, None)

    def is_poisoned(self, digest: Digest) -> bool:
        """Return whether the runtime is known to have wrong bytes of `digest`."""
        return self._poisoned.get(digest, 0.0) > self._clock()

    def _exclude(self, digest: Digest, peer_id: str, until: float, reason: str) -> None:
        if self._remember(self._excluded, (digest, peer_id), (until, reason)):
            self._metrics.limited.add("quarantine_entries")

    def _remember(self, table: OrderedDict[Any, Any], key: object, value: object) -> bool:
        """Add an entry. Return whether the oldest one was removed to make room for it."""
        table[key] = value
        table.move_to_end(key)
        is_full = len(table) > self._limits.quarantine_entries
        if is_full:
            table.popitem(last=False)
        return is_full


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
