"""Remembers for each blob which peers failed, and whether the runtime has wrong bytes of it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from peili.mirror.errors import FailureReason
from peili.mirror.limits import Limits
from peili.mirror.metrics.counters import Metrics
from peili.mirror.oci.references import Digest
from peili.mirror.support.newest import put_newest

_TRANSIENT_REASONS = frozenset({FailureReason.BUSY, FailureReason.REFUSED, FailureReason.UNREACHABLE})
"""`Blame` does not remember these reasons: the next request for the same blob may succeed."""
IN_FLIGHT = ""
"""Stands for the id of a peer that was still receiving the content when it sent bytes: it passed on those of others."""
_MAX_CUTS = 5
"""How often a runtime that fetches in vain is cut off. containerd gives up after four cuts at one byte."""


class _Exclusion(NamedTuple):
    """Why a peer is not asked, until which time, and whether it is certain that it failed."""

    until: float
    reason: str
    is_certain: bool


_NOT_EXCLUDED = _Exclusion(0.0, "", is_certain=False)


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
        self._excluded: OrderedDict[tuple[Digest, str], _Exclusion] = OrderedDict()
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
        if until < self._excluded.get((digest, peer_id), _NOT_EXCLUDED).until:
            return  # a less serious failure does not shorten a quarantine
        if reason == FailureReason.WRONG:
            self._metrics.quarantines.add()
        self._exclude(digest, peer_id, _Exclusion(until, reason, is_certain=True))

    def doubt(self, digest: Digest, peer_id: str) -> None:
        """Note that `peer_id` is one of several that may have sent wrong bytes of `digest`.

        It is not asked for ``failure_ttl`` seconds, and then asked last.
        """
        self._metrics.failures.add(FailureReason.WRONG)
        now = self._clock()
        until = now + self._limits.failure_ttl
        if until > self._excluded.get((digest, peer_id), _NOT_EXCLUDED).until:
            self._exclude(digest, peer_id, _Exclusion(until, FailureReason.WRONG, is_certain=False))
        self._remember(self._doubted, (digest, peer_id), now + self._limits.quarantine_ttl)

    def is_doubted(self, digest: Digest, peer_id: str) -> bool:
        """Return whether `peer_id` may have sent wrong bytes of `digest` in the last ``quarantine_ttl`` seconds."""
        return self._doubted.get((digest, peer_id), 0.0) > self._clock()

    def is_quarantined(self, digest: Digest, peer_id: str) -> bool:
        """Return whether `peer_id` is not asked for `digest` now because it is certain that it sent wrong bytes."""
        found = self._excluded.get((digest, peer_id), _NOT_EXCLUDED)
        return found.until > self._clock() and found.reason == FailureReason.WRONG and found.is_certain

    def excluded(self, digest: Digest) -> dict[str, str]:
        """Return the ids of the peers not to ask for `digest` now, each with the reason; see `Want.failed`."""
        now = self._clock()
        for key in [key for key, each in self._excluded.items() if each.until <= now]:
            del self._excluded[key]
        return {peer_id: each.reason for (blamed, peer_id), each in self._excluded.items() if blamed == digest}

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

    def _exclude(self, digest: Digest, peer_id: str, exclusion: _Exclusion) -> None:
        if self._remember(self._excluded, (digest, peer_id), exclusion):
            self._metrics.limited.add("quarantine_entries")

    def _remember(self, table: OrderedDict[Any, Any], key: object, value: object) -> bool:
        """Add an entry. Return whether the oldest one was removed to make room for it."""
        return put_newest(table, key, value, self._limits.quarantine_entries)
