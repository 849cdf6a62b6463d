"""Ends the process when its event loop stands still: a hung mirror would hang its runtime, which has no timer.

Of use to a host that embeds the mirror, as it is to the command.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

_TICKS = 10
_STDERR = 2


class Watchdog:
    """While it is entered (``async with``), a thread watches that the running loop moves on.

    A loop that has not come round for `timeout` seconds is stalled: by default every thread's stack goes to stderr and
    the process ends by SIGABRT. `on_stall`, where given, is called instead, in the watching thread, once for each
    stall; it must not wait for the loop. `notify` is called on the loop at every heartbeat, each `interval` seconds
    (by default, and at most, a tenth of `timeout`).

    The thread counts its own ticks, so a process that was stopped as a whole, or slept with its machine, is not taken
    for a stalled one. A call that never gives up the interpreter's lock stops this thread as well; only an outside
    watchdog sees that one, by `notify` falling silent. The thread is gone when the context is left or its loop closed.
    Raises ValueError for times that are not above zero.
    """

    def __init__(
        self,
        timeout: float = 30.0,
        *,
        interval: float | None = None,
        on_stall: Callable[[], None] | None = None,
        notify: Callable[[], None] | None = None,
    ) -> None:
        if not (timeout > 0 and (interval is None or interval > 0)):
            raise ValueError(f"times above zero are needed, not {timeout} and {interval}")
        self._timeout = timeout
        self._tick = timeout / _TICKS
        self._interval = self._tick if interval is None else min(interval, self._tick)
        self._on_stall = on_stall or self._end
        self._notify = notify
        self._beats = 0
        self._left = threading.Event()

    async def __aenter__(self) -> Self:
        self._left.clear()
        self._loop = asyncio.get_running_loop()
        self._beat()
        self._thread = threading.Thread(target=self._watch, name="peili-watchdog")
        self._thread.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._next.cancel()
        self._left.set()
        self._thread.join()

    def _beat(self) -> None:
        self._next = self._loop.call_later(self._interval, self._beat)
        self._beats += 1
        if self._notify is not None:
            self._notify()

    def _watch(self) -> None:
        seen, silent = 0, 0
        while not self._left.wait(self._tick) and not self._loop.is_closed():
            if self._beats != seen:
                seen, silent = self._beats, 0
                continue
            silent += 1
            if silent == _TICKS:
                self._on_stall()

    def _end(self) -> None:
        if not os.isatty(_STDERR):
            os.set_blocking(_STDERR, False)  # a reader that hangs may be the very reason; it must not stop us too
        with suppress(OSError):
            os.write(_STDERR, f"peili: the event loop has not moved for {self._timeout:g} seconds\n".encode())
        faulthandler.dump_traceback(_STDERR, all_threads=True)
        os.abort()
