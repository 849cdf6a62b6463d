"""When to list again: soon while things change, seldom while they don't, and never so often that it costs much."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

SOON = 1.0
"""Seconds after a change until everything is listed once more, for what came late; doubled from then on."""
SELDOM = 30.0
"""At most so many seconds pass between two listings …"""
QUICK = 1.5
"""… or these, where listing is the only way to notice something."""
LEAST_PAUSE = 0.2
"""At least so many seconds pass between two listings …"""
COST = 5
"""… and at least so many times what the last one took."""


class Pace:
    """The rhythm of one connection's listings. With `quick`, nothing but a listing shows what changed."""

    def __init__(self, *, quick: bool) -> None:
        self._longest = QUICK if quick else SELDOM
        self._interval = SOON
        self._changed = True  # to be connected is a change, too
        self._ended = time.monotonic()
        self._took = 0.0

    @contextmanager
    def measured(self) -> Generator[None, None, None]:
        """Around a listing."""
        started = time.monotonic()
        self._interval = SOON if self._changed else min(2 * self._interval, self._longest)
        self._changed = False
        yield
        self._ended = time.monotonic()
        self._took = self._ended - started

    def set_quick(self, *, quick: bool) -> None:
        """From now on nothing but a listing shows what changed; or, where false, something else does too."""
        self._longest = QUICK if quick else SELDOM
        self._interval = min(self._interval, self._longest)

    def hurry(self) -> None:
        """Something changed: list as soon as that may be done."""
        self._changed = True

    def remaining(self) -> float:
        """Seconds until the next listing, as far as is known."""
        pause = max(LEAST_PAUSE, COST * self._took)
        wait = pause if self._changed else max(pause, self._interval)
        return max(0.0, self._ended + wait - time.monotonic())

    def is_due(self) -> bool:
        """Whether it is time to list."""
        return not self.remaining()
