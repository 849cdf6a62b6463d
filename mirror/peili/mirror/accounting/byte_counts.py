"""Counts the bytes that this host's runtime received, by where they came from.

Bytes from the store and from peers pass the local door. Bytes from upstream do not. They are the rest of each blob or
manifest that the runtime requested here and did not get whole, and that appears in the store later.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from peili.mirror.oci.references import Digest

_MOST_REQUESTED = 4096
"""How many requested digests are remembered. The oldest is forgotten: then its bytes from upstream do not count."""
_MINUTE = 60
_HISTORY = 24 * 60
"""Minutes of history."""


@dataclass(frozen=True, slots=True)
class Received:
    """Numbers of bytes.

    Attributes:
        store: Sent to the runtime from this host's store.
        peers: Sent to the runtime from peers.
        upstream: Fetched by the runtime from upstream, as far as this host noticed.
        served: Sent to other hosts. The runtime did not receive them.
    """

    store: int = 0
    peers: int = 0
    upstream: int = 0
    served: int = 0

    @property
    def saved(self) -> float | None:
        """The share of the runtime's bytes that did not come from upstream, from 0 to 1. None if there are no bytes."""
        total = self.store + self.peers + self.upstream
        return (self.store + self.peers) / total if total else None

    def since(self, earlier: Received) -> Received:
        """Return what was added after `earlier`."""
        return Received(
            self.store - earlier.store,
            self.peers - earlier.peers,
            self.upstream - earlier.upstream,
            self.served - earlier.served,
        )


@dataclass(slots=True)
class _Requested:
    """One digest that the runtime requested: how many bytes it got here, and whether it had to go upstream."""

    delivered: int = 0
    is_missed: bool = False


class RequestedContent:
    """The digests that the runtime requested and that are not known to be in the store. The oldest are forgotten."""

    def __init__(self) -> None:
        self._requested: OrderedDict[Digest, _Requested] = OrderedDict()

    def note(self, digest: Digest, delivered: int, *, is_missed: bool) -> None:
        """Record a response.

        Args:
            digest: What the runtime requested.
            delivered: The number of bytes that it got.
            is_missed: Whether it has to go upstream for the rest.
        """
        entry = self._requested.setdefault(digest, _Requested())
        entry.delivered += delivered
        entry.is_missed |= is_missed
        self._requested.move_to_end(digest)
        if len(self._requested) > _MOST_REQUESTED:
            self._requested.popitem(last=False)

    def discarded(self, digest: Digest) -> None:
        """Record that what the runtime got was wrong, and was removed from the store."""
        if (entry := self._requested.get(digest)) is not None:
            entry.delivered, entry.is_missed = 0, True

    def arrived(self, digest: Digest, size: int) -> int | None:
        """Record that the whole content is in the store now.

        Returns:
            How many of its bytes came from upstream; None if it was not requested here.
        """
        entry = self._requested.pop(digest, None)
        if entry is None:
            return None
        return max(0, size - entry.delivered) if entry.is_missed else 0

    def __contains__(self, digest: object) -> bool:
        return digest in self._requested


@dataclass(frozen=True, slots=True)
class Minute:
    """What was received in one minute.

    Attributes:
        start: When the minute began, in seconds since 1970.
    """

    start: int
    received: Received


class History:
    """The bytes of each minute of the last day, and those of today. The day begins at midnight, local time.

    `sample` is called with the totals often enough, and before the history is read.

    Args:
        now: Returns the time in seconds since 1970.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._minutes: deque[Minute] = deque(maxlen=_HISTORY)
        self._sampled = Received()
        self._day = self._date()
        self._before_today = Received()

    def sample(self, totals: Received) -> None:
        """Record the current totals, which never shrink."""
        date = self._date()
        if date != self._day:
            self._day, self._before_today = date, self._sampled
        added = totals.since(self._sampled)
        if added == Received():
            return
        self._sampled = totals
        start = int(self._now()) // _MINUTE * _MINUTE
        if self._minutes and self._minutes[-1].start == start:
            last = self._minutes.pop().received
            added = Received(*(getattr(last, each) + getattr(added, each) for each in Received.__slots__))
        self._minutes.append(Minute(start, added))

    @property
    def today(self) -> Received:
        """The bytes since midnight, or since the start if that was later."""
        return self._sampled.since(self._before_today)

    def minutes(self) -> list[Minute]:
        """Return the minutes of the last day that have bytes, the oldest first."""
        oldest = self._now() - _HISTORY * _MINUTE
        return [each for each in self._minutes if each.start >= oldest]

    def _date(self) -> tuple[int, int]:
        local = time.localtime(self._now())
        return local.tm_year, local.tm_yday
