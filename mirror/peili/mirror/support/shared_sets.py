"""Lets equal sets be one object."""

from __future__ import annotations

from weakref import WeakValueDictionary


class SharedSets:
    """Finds out which of the sets that somebody uses equals a new one. Nothing is kept only because it is here."""

    def __init__(self) -> None:
        self._by_hash: WeakValueDictionary[int, frozenset[str]] = WeakValueDictionary()

    def share(self, new: frozenset[str]) -> frozenset[str]:
        """Return a set that equals `new`: an earlier one, if somebody still uses it, or `new` itself."""
        known = self._by_hash.setdefault(hash(new), new)
        return known if known == new else new
