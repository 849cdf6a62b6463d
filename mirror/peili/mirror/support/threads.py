"""Calls between threads: from any thread to the event loop, and from the loop to threads that may hang."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import TypeVar

_T = TypeVar("_T")


def call_on(loop: asyncio.AbstractEventLoop, function: Callable[[], _T], timeout: float) -> _T | None:
    """Call `function` on `loop`, from any thread, and wait for its result.

    If the loop is not running, or is the one of this thread, the function is called at once.

    Args:
        loop: The event loop.
        function: The function. Its errors are raised here.
        timeout: How many seconds to wait for the loop.

    Returns:
        The result; None if the loop does not call it in time.
    """
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is loop or not loop.is_running():
        return function()
    result: Future[_T] = Future()
    try:
        loop.call_soon_threadsafe(_settle, result, function)
    except RuntimeError:  # the loop was closed meanwhile
        return None
    wait([result], timeout)
    if result.done():
        return result.result()
    result.cancel()
    return None


class DaemonThreads:
    """A few threads for functions that may hang. Nothing waits for them, not even the exit of the process.

    A ThreadPoolExecutor does not work for this: the interpreter joins its threads at exit. A thread ends when there is
    no more work.

    Args:
        most: The maximum number of threads.
        name: The name of the threads.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._busy = 0

    def run(self, function: Callable[[], _T]) -> asyncio.Future[_T]:
        """Call `function` in a thread as soon as one is free.

        Returns:
            A future for its result, on the running loop. To cancel it does not stop a function that is running.

        Raises:
            OSError: No thread can be started.
        """
        result: Future[_T] = Future()
        with self._lock:
            self._waiting.append(partial(_settle, result, function))
            if self._busy < self._most:
                self._start()
        return asyncio.wrap_future(result)

    def _start(self) -> None:
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError as error:
            self._waiting.pop()
            raise OSError(str(error)) from error
        self._busy += 1

    def _work(self) -> None:
        while (work := self._next()) is not None:
            work()

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._busy -= 1
            return None


def _settle(result: Future[_T], function: Callable[[], _T]) -> None:
    """Set `result` to what `function` returns or raises, unless it was cancelled."""
    if result.set_running_or_notify_cancel():
        try:
            result.set_result(function())
        except BaseException as error:  # noqa: BLE001 - the other thread raises it
            result.set_exception(error)
