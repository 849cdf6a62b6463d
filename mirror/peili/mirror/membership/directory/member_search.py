"""Looks for members after a message from a host that is no member, as far as is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

SHORTEST = 0.25
"""Seconds between two searches while they find something."""


class SearchPace:
    """When the next search is due. Pure arithmetic.

    The time between two searches doubles as long as nothing is learned of any member. It is short again as soon as
    something is, and after a while without searches.

    Args:
        longest: The longest time between two searches in seconds.
    """

    def __init__(self, longest: float) -> None:
        self._longest = max(longest, SHORTEST)
        self._last = float("-inf")
        self._version: int | None = None
        self._interval = SHORTEST

    def due(self, now: float, version: int) -> float:
        """Return when a search may begin, if `version` grows whenever something is learned of the members."""
        if version != self._version or now >= self._last + 2 * self._longest:
            return self._last + SHORTEST
        return self._last + self._interval

    def search(self, now: float, version: int) -> None:
        """Note that a search begins."""
        is_useful = version != self._version or now >= self._last + 2 * self._longest
        self._interval = SHORTEST if is_useful else min(2 * self._interval, self._longest)
        self._last, self._version = now, version


class MemberSearch:
    """Looks for members that this host does not know yet, or takes for dead, when an unknown host speaks.

    That may be a member that has just started. But anybody can send a message, and each search asks all members that do
    not answer. So searches that find nothing get rarer. A message that comes too early is not forgotten: one search
    follows as soon as it may. For use on one loop.

    Args:
        search: Asks the members that are dead, and those whose id is not known.
        version: Returns a number that grows whenever something is learned of the members.
        longest: The longest time between two searches in seconds.
    """

    def __init__(self, search: Callable[[], None], version: Callable[[], int], longest: float) -> None:
        self._search = search
        self._version = version
        self._pace = SearchPace(longest)
        self._waiting: asyncio.TimerHandle | None = None

    def run(self) -> None:
        """Look for members, now or as soon as it may be."""
        loop = asyncio.get_running_loop()
        due = self._pace.due(loop.time(), self._version())
        if self._waiting is not None and self._waiting.when() <= due:
            return
        self.close()
        if due <= loop.time():
            self._look()
        else:
            self._waiting = loop.call_at(due, self._look)

    def close(self) -> None:
        """Look for nothing later."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _look(self) -> None:
        self._waiting = None
        self._pace.search(asyncio.get_running_loop().time(), self._version())
        self._search()
