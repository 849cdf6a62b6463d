"""Timeouts for waiting for others that allow for the time in which this process did not run.

If this process or its machine was stopped, or its loop was blocked, nobody else is to blame for the delay.
`asyncio.timeout` bounds a wait by the clock alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

_TICKS = 10


class Countdown:
    """Calls a function after some seconds on the running loop.

    The countdown has ten ticks, and a late tick counts as one tick. So after the process was stopped, its machine slept
    or its loop was blocked, there is time to read what has arrived meanwhile. It ends after twenty ticks in any
    case.

    Args:
        seconds: The time, if no tick is late.
        on_end: The function.
    """

    def __init__(self, seconds: float, on_end: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._tick = seconds / _TICKS
        self._ticks_left = _TICKS
        self._on_end = on_end
        self._schedule()

    def cancel(self) -> None:
        """Do not call the function any more. Idempotent."""
        self._next.cancel()
        self._on_end = _nothing  # the old one may refer to this object: a cycle for the garbage collector

    @property
    def remaining(self) -> float:
        """Seconds until the end, to the precision of a tick; at least one tick."""
        return max(self._ticks_left, 1) * self._tick

    def restart(self) -> None:
        """Count from the start again, to the precision of a tick. Not after `cancel`."""
        self._ticks_left = _TICKS

    def _schedule(self) -> None:
        self._due = self._loop.time() + self._tick
        self._next = self._loop.call_at(self._due, self._on_tick)

    def _on_tick(self) -> None:
        self._ticks_left -= 1
        was_late = self._loop.time() - self._due > self._tick
        if self._ticks_left > 0 or (was_late and self._ticks_left > -_TICKS):
            self._schedule()
        else:
            self._on_end()


def _nothing() -> None:
    pass


class Deadline:
    """Works like `asyncio.timeout`, with a `Countdown`: ``async with Deadline(seconds):``. Raises TimeoutError."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._countdown = Countdown(self._seconds, self.expire)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._countdown.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    @property
    def remaining(self) -> float:
        """Seconds until the end, to the precision of a tenth of the whole time; always above zero. Only while it is
        entered.
        """
        return self._countdown.remaining

    def expired(self) -> bool:
        """Return whether the time was up."""
        return self._timeout.expired()

    def expire(self) -> None:
        """End the time now. Only while it is entered."""
        self._timeout.reschedule(asyncio.get_running_loop().time())
