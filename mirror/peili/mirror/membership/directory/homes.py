"""Which members are homes, and which of them are the homes of a key. Every host computes the same from the same ids.

Homes are picked by rendezvous hashing: at most 64 of all members, and two of these for each of 1,024 slots. A key
belongs to a slot. When a member comes or goes, only the slots that it gains or loses move. docs/protocol.md has the
same rules for other implementations.
"""

from __future__ import annotations

import hashlib
import heapq
import sys
from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache

from peili.mirror.peer_api.directory import MAX_HOMES

SLOTS = 1024
"""The number of slots into which the keys are divided."""
HOMES_PER_KEY = 2


def slot_of(key: str) -> int:
    """Return the slot of a key: the last 10 bits of the first two bytes of its SHA-256."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:2], "big") % SLOTS


def choose_homes(ids: Iterable[str]) -> frozenset[str]:
    """Return the members that are homes: the 64 with the highest weight."""
    return frozenset(heapq.nlargest(MAX_HOMES, ids, key=_weight))


class HomeSet:
    """A set of homes, and how it divides the slots.

    Attributes:
        ids: The ids of the homes.
    """

    def __init__(self, ids: frozenset[str]) -> None:
        self.ids = ids
        self._sorted = sorted(ids)
        self._weights: list[array[int]] | None = None  # in the order of `_sorted`
        self._by_slot: dict[int, tuple[str, ...]] = {}

    def homes_of(self, slot: int) -> tuple[str, ...]:
        """Return the homes of a slot, the first one first: two, or all if there are fewer. Computed once for a slot."""
        homes = self._by_slot.get(slot)
        if homes is None:
            homes = self._by_slot[slot] = tuple(self._rank(slot))
        return homes

    def _rank(self, slot: int) -> Iterator[str]:
        """Yield the homes with the highest weights for a slot. Of equal ones, the lower id comes first."""
        if self._weights is None:
            self._weights = [_slot_weights(each) for each in self._sorted]
        weights = [each[slot] for each in self._weights]
        for _ in range(min(HOMES_PER_KEY, len(weights))):
            index = weights.index(max(weights))
            weights[index] = -1
            yield self._sorted[index]


@lru_cache(maxsize=16384)
def _weight(identity: str) -> tuple[bytes, str]:
    """Return the weight of a member among all: the SHA-256 of its id, then the id."""
    return hashlib.sha256(b"peili home " + identity.encode()).digest(), identity


@lru_cache(maxsize=256)
def _slot_weights(identity: str) -> array[int]:
    """Return the weights of a home for all slots: numbers of 8 bytes, big-endian, of the SHAKE-256 of its id."""
    weights = array("Q", hashlib.shake_256(b"peili slots " + identity.encode()).digest(8 * SLOTS))
    if sys.byteorder == "little":
        weights.byteswap()
    return weights
