"""The growing delay between the tries of something that fails."""

from __future__ import annotations

import asyncio
import random


class Backoff:
    """The delay before the next try: `first` seconds, doubled after each try, up to `longest` seconds.

    Args:
        first: the first delay, in seconds.
        longest: no delay is longer than this, in seconds.
        jitter: each delay is shorter by a random part, up to this share of it. Different hosts then try at different
            times.

    Attributes:
        delay: seconds that the next `sleep` takes, without the jitter.
    """

    def __init__(self, first: float, longest: float, *, jitter: float = 0.0) -> None:
        self._first = first
        self._longest = longest
        self._jitter = jitter
        self.delay = first

    async def sleep(self) -> None:
        """Wait for the current delay. The next delay is twice as long."""
        await asyncio.sleep(self.next_delay())

    def next_delay(self) -> float:
        """Return the current delay in seconds. The next delay is twice as long."""
        delay, self.delay = self.delay, min(2 * self.delay, self._longest)
        return delay * random.uniform(1 - self._jitter, 1)  # noqa: S311 - spreads hosts in time, not a secret

    def reset(self) -> None:
        """Begin with the first delay again, because a try succeeded."""
        self.delay = self._first
