"""Work for a loop, asked for by another thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, wait
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


def _settle(result: Future[_T], work: Callable[[], _T]) -> None:
    if result.set_running_or_notify_cancel():
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is the other thread's
            result.set_exception(error)
