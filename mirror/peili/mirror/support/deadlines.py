"""Waits for others, bounded by the time in which this host was there to notice: a loop that stood still blames nobody.

What bounds waiting in all, whatever happened, is `asyncio.timeout`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

_TICKS = 10


class Countdown:
    """Calls `over` when `seconds` have passed on the running loop, unless it was cancelled.

    It counts its own ticks, a tenth of `seconds` each, and a tick that came late is one tick. So where the process was
    stopped, its machine slept, or other work kept the loop, there is time left to see what has come meanwhile. It ends
    after twice as many ticks however late they are.
    """

    def __init__(self, seconds: float, over: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._tick = seconds / _TICKS
        self._left = _TICKS
        self._over = over
        self._wind()

    def cancel(self) -> None:
        """`over` will not be called. Idempotent."""
        self._next.cancel()
        self._over = _nothing  # whose it is may hold this: that would stay for the garbage collector

    @property
    def left(self) -> float:
        """Seconds until `over`, as precise as a tick is; one tick at least."""
        return max(self._left, 1) * self._tick

    def restart(self) -> None:
        """Count from now on, as precise as a tick is; not once it was cancelled."""
        self._left = _TICKS

    def _wind(self) -> None:
        self._due = self._loop.time() + self._tick
        self._next = self._loop.call_at(self._due, self._count)

    def _count(self) -> None:
        self._left -= 1
        was_late = self._loop.time() - self._due > self._tick
        if self._left > 0 or (was_late and self._left > -_TICKS):
            self._wind()
        else:
            self._over()


def _nothing() -> None:
    pass


class Deadline:
    """``async with Deadline(seconds):`` is `asyncio.timeout` by a `Countdown`. Raises TimeoutError."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._countdown = Countdown(self._seconds, self.end)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._countdown.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    @property
    def left(self) -> float:
        """Seconds that are left, inside of it; precise to a tenth of all, and never none."""
        return self._countdown.left

    def expired(self) -> bool:
        """Whether the time was up."""
        return self._timeout.expired()

    def end(self) -> None:
        """The time is up now. Only between entering and leaving."""
        self._timeout.reschedule(asyncio.get_running_loop().time())
