"""Remembers for which repositories this host's runtime requests content, and so to whom it belongs when it arrives.

It matters for content that belongs to no image yet. Its first byte decides: if the runtime has requested it lately, and
only for repositories that are not covered, it is open, and stays so. Otherwise it is closed. A request that comes later
changes nothing, so nobody can open what has arrived for others, or close what others are about to get.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager

from peili.mirror.oci.references import Digest
from peili.mirror.support.expiring import Expiring
from peili.mirror.support.recently_seen import RecentlySeen

_MOST = 65_536
"""How many digests are remembered. If there are more, what arrives is closed."""
_OPEN_TTL = 60.0
"""Seconds in which the first byte of what was requested arrives."""
_ASKED_TTL = 120.0
"""The same as `_COVERED_TTL`, for a request that was not granted. It is longer than `_OPEN_TTL`, too."""
_COVERED_TTL = 6 * 3600.0
"""Seconds for which nothing else explains what was requested for a covered repository. Far longer than `_OPEN_TTL`."""


class Arrivals:
    """What the runtime requests, and what arrives. Used on one event loop. What is not known is closed.

    Args:
        most: The largest number of digests.
        clock: Seconds that never go back.
    """

    def __init__(self, most: int = _MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._open: Expiring[Digest, bool] = Expiring(most, clock)  # whether it has arrived through this process
        self._covered: Expiring[Digest, None] = Expiring(most, clock)
        self._asked = RecentlySeen(_ASKED_TTL, clock)  # anybody can ask for any number of digests
        self._arrived: dict[Digest, bool] = {}  # whether it is open
        self._at_once: dict[Digest, float] = {}  # what is open, and was whole when it was noticed, and when
        self._relayed: Counter[Digest] = Counter()  # what arrives through this process, and is open
        self._is_followed = False

    def follow(self, *, is_followed: bool) -> None:
        """Note whether everything that was here before is known, so that it can be told apart from what arrives now."""
        self._is_followed = is_followed
        if not is_followed:
            self._open.clear()
            self._arrived.clear()
            self._at_once.clear()

    def note_request(self, digest: Digest, *, is_covered: bool, is_granted: bool = False) -> None:
        """Note that this host's runtime has requested content that is not here, whether it gets it from here or not.

        Args:
            digest: The content.
            is_covered: Whether it is for a covered repository.
            is_granted: Whether the registry says that the requester may have it. If not, anybody may have written the
                request, and it closes the content only for a short time.
        """
        if is_covered:
            if not is_granted:
                self._asked.add(digest)
            elif self._covered.has_room() or digest in self._covered:
                self._covered.set(digest, None, _COVERED_TTL)
            self._open.discard(digest)
        elif self._is_followed and digest not in self._arrived:
            self._open.set(digest, self._open.get(digest) or False, _OPEN_TTL)

    def note_arrival(self, digest: Digest, *, is_whole: bool) -> None:
        """Note that there is content. What arrives whole and unnoticed is remembered only if it is open."""
        if digest in self._arrived:
            return
        is_open = self.is_open(digest)
        if is_open or not is_whole:
            self._arrived[digest] = is_open
        if is_open and is_whole and not (self._relayed[digest] or self._open.get(digest)):
            self._at_once[digest] = self._clock()

    def seconds_without_reason(self, digest: Digest) -> float | None:
        """Return for how many seconds content has been here that nobody has seen arrive; None if somebody has.

        A request alone does not show that it is for whom the runtime has fetched it: it may have been imported.
        """
        at = self._at_once.get(digest)
        return None if at is None else self._clock() - at

    def note_fetched(self, digest: Digest) -> None:
        """Note that the runtime has fetched content that nobody has seen arrive."""
        self._at_once.pop(digest, None)

    @contextmanager
    def relaying(self, digest: Digest) -> Generator[None]:
        """Note that content arrives through this process until the context ends, and then gets into the store.

        The store need not show it before, however long it takes.
        """
        is_open = self.is_open(digest)
        self._relayed[digest] += is_open
        try:
            yield
        finally:
            self._relayed[digest] -= is_open
            if not self._relayed[digest]:
                del self._relayed[digest]
            if is_open and self._is_followed and digest not in self._arrived and not self.is_for_others(digest):
                self._open.set(digest, True, _OPEN_TTL)

    def forget(self, digests: Collection[Digest]) -> None:
        """Note that these digests are gone, or that images say to whom they belong."""
        for digest in digests if len(digests) < len(self._arrived) else list(self._arrived):
            if digest in digests:
                self._arrived.pop(digest, None)
                self._at_once.pop(digest, None)

    def is_for_others(self, digest: Digest) -> bool:
        """Return whether `digest` was requested for a covered repository lately."""
        return digest in self._covered or digest in self._asked

    def is_open(self, digest: Digest) -> bool:
        """Return whether `digest` has arrived, or is about to arrive, for repositories only that are not covered."""
        if (is_open := self._arrived.get(digest)) is not None:
            return is_open
        if self._relayed[digest] and self._is_followed:
            return True
        has_room = self._covered.has_room() and len(self._arrived) < self._most
        return digest in self._open and not self.is_for_others(digest) and has_room
