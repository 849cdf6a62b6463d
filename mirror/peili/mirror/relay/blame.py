"""Remembers which peer would not do for which content, and why. Bounded, and forgotten after a while."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection

from peili.mirror.errors import FailureReason
from peili.mirror.limits import Limits
from peili.mirror.metrics.counters import Metrics
from peili.mirror.oci.references import Digest

_PASSING = frozenset({FailureReason.BUSY, FailureReason.REFUSED, FailureReason.UNREACHABLE})
"""Reasons that say nothing about the next request; who can be reached is the router's to know."""


class Blame:
    """Per blob, the peers that failed it. A peer that lied is quarantined for that blob for `quarantine_ttl` seconds;
    one that stalled or broke, or is one of several that may have lied, is passed over for `failure_ttl`. Not
    thread-safe.
    """

    def __init__(
        self, limits: Limits, clock: Callable[[], float] = time.monotonic, *, metrics: Metrics | None = None
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._until: OrderedDict[tuple[Digest, str], tuple[float, str]] = OrderedDict()
        self._poisoned: OrderedDict[Digest, float] = OrderedDict()
        self._suspects: OrderedDict[Digest, dict[str, float]] = OrderedDict()
        self._doubted: OrderedDict[tuple[Digest, str], float] = OrderedDict()

    def record(self, digest: Digest, peer_id: str, reason: str) -> None:
        """`peer_id` would not do for `digest`."""
        self._metrics.failures.add(reason)
        if reason in _PASSING:
            return
        ttl = self._limits.quarantine_ttl if reason == FailureReason.WRONG else self._limits.failure_ttl
        until = self._clock() + ttl
        if until < self._until.get((digest, peer_id), (0.0, ""))[0]:
            return  # a smaller fault does not end a quarantine
        if reason == FailureReason.WRONG:
            self._metrics.quarantines.add()
        self._pass_over(digest, peer_id, until, reason)

    def doubt(self, digest: Digest, peer_id: str) -> None:
        """`peer_id` is one of several that may have sent wrong bytes of `digest`: passed over, then asked last."""
        self._metrics.failures.add(FailureReason.WRONG)
        now = self._clock()
        if now + self._limits.failure_ttl > self._until.get((digest, peer_id), (0.0, ""))[0]:
            self._pass_over(digest, peer_id, now + self._limits.failure_ttl, FailureReason.WRONG)
        self._doubted[digest, peer_id] = now + self._limits.quarantine_ttl
        self._doubted.move_to_end((digest, peer_id))
        while len(self._doubted) > self._limits.quarantine_entries:
            self._doubted.popitem(last=False)

    def is_doubted(self, digest: Digest, peer_id: str) -> bool:
        """Whether `peer_id` may have lied about `digest`, for `quarantine_ttl` seconds: others are asked first."""
        return self._doubted.get((digest, peer_id), 0.0) > self._clock()

    def _pass_over(self, digest: Digest, peer_id: str, until: float, reason: str) -> None:
        self._until[digest, peer_id] = (until, reason)
        self._until.move_to_end((digest, peer_id))
        while len(self._until) > self._limits.quarantine_entries:
            self._until.popitem(last=False)
            self._metrics.limited.add("quarantine_entries")

    def failed(self, digest: Digest) -> dict[str, str]:
        """The peers not to ask for `digest` now, with the reason; what `Want.failed` takes."""
        now = self._clock()
        for each in [each for each, (until, _) in self._until.items() if until <= now]:
            del self._until[each]
        return {peer: reason for (blamed, peer), (_, reason) in self._until.items() if blamed == digest}

    def suspect(self, digest: Digest, peer_ids: Collection[str]) -> None:
        """These sent, unverified, some of what the runtime has of `digest` so far. Forgotten after `quarantine_ttl`."""
        if not peer_ids:
            return
        until = self._clock() + self._limits.quarantine_ttl
        self._suspects.setdefault(digest, {}).update(dict.fromkeys(peer_ids, until))
        self._suspects.move_to_end(digest)
        while len(self._suspects) > self._limits.quarantine_entries:
            self._suspects.popitem(last=False)

    def suspects(self, digest: Digest) -> frozenset[str]:
        """The peers that may be to blame if the rest of `digest` does not match."""
        now = self._clock()
        return frozenset(peer for peer, until in self._suspects.get(digest, {}).items() if until > now)

    def poison(self, digest: Digest) -> None:
        """What the runtime has of `digest` so far is wrong: it can't be continued."""
        self._poisoned[digest] = self._clock() + self._limits.quarantine_ttl
        self._poisoned.move_to_end(digest)
        while len(self._poisoned) > self._limits.quarantine_entries:
            self._poisoned.popitem(last=False)

    def heal(self, digest: Digest) -> None:
        """The runtime has begun `digest` anew."""
        self._poisoned.pop(digest, None)
        self._suspects.pop(digest, None)

    def is_poisoned(self, digest: Digest) -> bool:
        """Whether what the runtime has of `digest` so far is known to be wrong."""
        return self._poisoned.get(digest, 0.0) > self._clock()
