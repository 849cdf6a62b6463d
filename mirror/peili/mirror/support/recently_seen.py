"""A set of what was seen lately, in constant memory."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b

_BITS = 2**23
"""Bits of one part of the set: 1 MiB of memory."""
_HASHES = 4
_PARTS = 3


class RecentlySeen:
    """Texts that were seen lately. Used by one thread.

    It has room for any number of texts, so nobody can make it forget one. But it may also contain a text that nobody
    has added (a Bloom filter). If 100,000 texts are added in each half of `seconds`, it contains one of 70,000 others,
    and with 500,000, one of 160. The hashes are salted, so nobody can choose which ones.

    Args:
        seconds: How long a text stays. It may stay half as long again.
        clock: Seconds that never go back.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds / (_PARTS - 1)
        self._clock = clock
        self._salt = secrets.token_bytes(16)
        self._parts: list[tuple[float, bytearray]] = []  # the oldest first, with when each began

    def add(self, text: str) -> None:
        """Add a text."""
        now = self._clock()
        self._parts = [each for each in self._parts if now - each[0] < _PARTS * self._seconds]
        if not self._parts or now - self._parts[-1][0] >= self._seconds:
            self._parts.append((now, bytearray(_BITS // 8)))
        bits = self._parts[-1][1]
        for place in self._places(text):
            bits[place // 8] |= 1 << place % 8

    def __contains__(self, text: str) -> bool:
        """Return whether a text was added lately."""
        now = self._clock()
        parts = [bits for began, bits in self._parts if now - began < _PARTS * self._seconds]
        places = list(self._places(text)) if parts else []
        return any(all(bits[place // 8] >> place % 8 & 1 for place in places) for bits in parts)

    def _places(self, text: str) -> Iterator[int]:
        found = blake2b(text.encode(), digest_size=4 * _HASHES, key=self._salt).digest()
        for start in range(0, len(found), 4):
            yield int.from_bytes(found[start : start + 4]) % _BITS
