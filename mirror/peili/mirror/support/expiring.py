"""A table whose entries end by themselves."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from peili.mirror.support.newest import put_newest

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class Expiring(Generic[_K, _V]):
    """Values by key, each for a time. Used by one thread.

    Args:
        most: The largest number of entries. If there is no room for another one, the one that was set first is removed.
        clock: Seconds that never go back.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._entries: OrderedDict[_K, tuple[_V, float]] = OrderedDict()

    def __contains__(self, key: _K) -> bool:
        """Return whether there is an entry for `key` now."""
        entry = self._entries.get(key)
        return entry is not None and self._clock() < entry[1]

    def get(self, key: _K) -> _V | None:
        """Return the value of `key`; None without an entry."""
        return self._entries[key][0] if key in self else None

    def remaining(self, key: _K) -> float:
        """Return for how many seconds the entry of `key` stays; 0 without one."""
        return self._entries[key][1] - self._clock() if key in self else 0.0

    def set(self, key: _K, value: _V, seconds: float) -> None:
        """Add an entry, or replace it, for this time."""
        put_newest(self._entries, key, (value, self._clock() + seconds), self._most)

    def discard(self, key: _K) -> None:
        """Remove the entry of `key`, if there is one."""
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Remove all entries."""
        self._entries.clear()

    def has_room(self) -> bool:
        """Return whether an entry can be added without losing one. What has ended at the front is removed first."""
        self._remove_ended()
        return len(self._entries) < self._most

    def is_empty(self) -> bool:
        """Return whether there is no entry. What has ended at the front is removed first."""
        self._remove_ended()
        return not self._entries

    def _remove_ended(self) -> None:
        now = self._clock()
        while self._entries and next(iter(self._entries.values()))[1] <= now:
            self._entries.popitem(last=False)
