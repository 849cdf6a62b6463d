"""Work that one thread has for another: for the loop's, and for threads that may hang without anybody minding."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import TypeVar

_T = TypeVar("_T")


def call_on(loop: asyncio.AbstractEventLoop, work: Callable[[], _T], patience: float) -> _T | None:
    """What `work` returns, called on `loop` whatever thread this is. None where the loop does not come round to it
    within `patience` seconds. Raises what `work` raises.
    """
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is loop or not loop.is_running():
        return work()
    result: Future[_T] = Future()
    try:
        loop.call_soon_threadsafe(_settle, result, work)
    except RuntimeError:  # it was closed just now
        return None
    wait([result], patience)
    if result.done():
        return result.result()
    result.cancel()
    return None


class DaemonThreads:
    """At most `most` threads, for work that may hang. Nobody waits for one, not even a process that ends.

    That is why it is no ThreadPoolExecutor: the interpreter joins those at its exit. A thread ends when there is no
    work left for it.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._busy = 0

    def run(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """What `work` returns or raises, for the running loop. Raises OSError where no thread can be had."""
        result: Future[_T] = Future()
        with self._lock:
            self._waiting.append(partial(_settle, result, work))
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


def _settle(result: Future[_T], work: Callable[[], _T]) -> None:
    if result.set_running_or_notify_cancel():
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is the other thread's
            result.set_exception(error)
