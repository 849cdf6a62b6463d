"""Background tasks that have an owner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

_T = TypeVar("_T")


class Tasks:
    """The background tasks of one owner: ``async with Tasks(log) as tasks``.

    On exit they are cancelled and awaited. A task that fails affects no other task. An owner that does not enter it
    calls `drain` and `cancel`.

    Args:
        log: Gets the errors of tasks that fail. Without it, the code that started a task must look at its error.
    """

    def __init__(self, log: logging.Logger | None = None) -> None:
        self._log = log
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """How many tasks are running."""
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Run `work` on the running loop until it ends or the owner exits, and return its task."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def drain(self, timeout: float) -> None:
        """Wait for the tasks that are running now, for up to `timeout` seconds."""
        if self._running:
            await asyncio.wait(self._running, timeout=timeout)

    def cancel(self) -> None:
        """Cancel all running tasks."""
        for task in self._running:
            task.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self._log is not None:
            self._log.error("a background task failed", exc_info=error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


def is_cancelled(error: BaseException) -> bool:
    """Whether `error` ends the current task because it was cancelled, and was not raised by third-party code."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
