"""Ends the process when its event loop is blocked. The runtime has no timeout: it would wait for a hung mirror forever.

The command uses it, and host agents may use it.
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
    """While it is entered (``async with``), a thread checks that the running loop makes progress.

    The thread counts its own ticks, so the time in which the process was stopped or its machine slept does not count. A
    call that never releases the interpreter's lock blocks this thread, too. An external watchdog notices that, because
    `notify` is no longer called. The thread ends when the watchdog is exited or the loop is closed.

    Args:
        timeout: The seconds without progress after which the loop counts as blocked.
        interval: The seconds between two calls of `notify`. By default, and at most, a tenth of `timeout`.
        on_stall: Called in the thread each time the loop is blocked. It must not wait for the loop. By default, it
            writes all stacks to stderr and ends the process with SIGABRT.
        notify: Called on the loop after every `interval`.

    Raises:
        ValueError: A time is not above zero.
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
            raise ValueError(f"times must be above zero, not {timeout} and {interval}")
        self._timeout = timeout
        self._tick = timeout / _TICKS
        self._interval = self._tick if interval is None else min(interval, self._tick)
        self._on_stall = on_stall or self._abort
        self._notify = notify
        self._beats = 0
        self._exited = threading.Event()

    async def __aenter__(self) -> Self:
        self._exited.clear()
        self._loop = asyncio.get_running_loop()
        self._beat()
        self._thread = threading.Thread(target=self._watch, name="peili-watchdog")
        self._thread.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._next.cancel()
        self._exited.set()
        self._thread.join()

    def _beat(self) -> None:
        self._next = self._loop.call_later(self._interval, self._beat)
        self._beats += 1
        if self._notify is not None:
            self._notify()

    def _watch(self) -> None:
        seen, silent = 0, 0
        while not self._exited.wait(self._tick) and not self._loop.is_closed():
            if self._beats != seen:
                seen, silent = self._beats, 0
                continue
            silent += 1
            if silent == _TICKS:
                self._on_stall()

    def _abort(self) -> None:
        if not os.isatty(_STDERR):
            # A hung reader of stderr may be the reason why the loop is blocked. It must not block this thread, too.
            os.set_blocking(_STDERR, False)
        with suppress(OSError):
            os.write(_STDERR, f"peili: the event loop has not moved for {self._timeout:g} seconds\n".encode())
        faulthandler.dump_traceback(_STDERR, all_threads=True)
        os.abort()
