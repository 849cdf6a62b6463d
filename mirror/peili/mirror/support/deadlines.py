"""Timeouts that do not count the time in which this process did not run.

If this process or its machine was stopped, or its loop was blocked, the other side is not to blame for the delay.
`asyncio.timeout` counts that time, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self, TypeAlias

_TICKS = 10
_GRACE = 2.0
"""Seconds after the end of a deadline in which its block has to end."""
OnOverrun: TypeAlias = Callable[[asyncio.Task[Any]], None]
ON_OVERRUN: ContextVar[OnOverrun | None] = ContextVar("peili.on_overrun", default=None)
"""Called on the loop with the task of a `Deadline` in this context that has ended, but whose block goes on: it ignores
that it was cancelled. Nothing can end it.
"""


class Countdown:
    """Calls a function after some seconds on the running loop.

    The countdown has ten ticks, and a late tick counts as one tick. So after the process was stopped, its machine slept
    or its loop was blocked, there is time to read what has arrived meanwhile. It ends after twenty ticks in any
    case.

    Args:
        seconds: The time until the end, if no tick is late.
        on_end: Called at the end.
    """

    def __init__(self, seconds: float, on_end: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._tick = seconds / _TICKS
        self._remaining_ticks = _TICKS
        self._on_end = on_end
        self._schedule()

    def cancel(self) -> None:
        """End the countdown without calling the function. Idempotent."""
        self._next.cancel()
        self._on_end = lambda: None  # the previous function may refer to this object, which would be a reference cycle

    @property
    def remaining(self) -> float:
        """Seconds until the end, to the precision of a tick; at least one tick."""
        return max(self._remaining_ticks, 1) * self._tick

    def restart(self) -> None:
        """Start again, to the precision of a tick. Do not call it after `cancel`."""
        self._remaining_ticks = _TICKS

    def _schedule(self) -> None:
        self._due = self._loop.time() + self._tick
        self._next = self._loop.call_at(self._due, self._on_tick)

    def _on_tick(self) -> None:
        self._remaining_ticks -= 1
        was_late = self._loop.time() - self._due > self._tick
        if self._remaining_ticks > 0 or (was_late and self._remaining_ticks > -_TICKS):
            self._schedule()
        else:
            self._on_end()


class Deadline:
    """A timeout for a block of code, like `asyncio.timeout`, with a `Countdown`: ``async with Deadline(seconds):``.

    The block is cancelled at the end of the time, and TimeoutError is raised. It is entered once.

    Args:
        seconds: The time for the block.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_expired = False
        self._expiry: asyncio.Handle | None = None
        self._grace: Countdown | None = None

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("not in a task")
        self._task, self._cancelling = task, task.cancelling()
        self._countdown = Countdown(self._seconds, self.expire)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._countdown.cancel()
        if self._expiry is not None:
            self._expiry.cancel()
        if self._grace is not None:
            self._grace.cancel()
        # As in asyncio.timeout: if other code has cancelled the task, too, that cancellation continues.
        if self._is_expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    @property
    def remaining(self) -> float:
        """Seconds until the end, to the precision of a tenth of the whole time. Always above zero.

        Valid only while the deadline is entered.
        """
        return self._countdown.remaining

    def expired(self) -> bool:
        """Return whether the block was cancelled because the time was up."""
        return self._is_expired

    def expire(self) -> None:
        """Let the time end now. Call it only while the deadline is entered. Idempotent.

        If what the block waits for has just arrived, the block receives that first, and may end before the deadline.
        """
        if self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        self._is_expired = True
        self._task.cancel()
        if (on_overrun := ON_OVERRUN.get()) is not None:
            self._grace = Countdown(_GRACE, lambda: on_overrun(self._task))
