"""Lets tasks that need the same result share one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from peili.mirror.errors import Unavailable
from peili.mirror.support.tasks import Tasks

_K = TypeVar("_K", bound=Hashable)
_T = TypeVar("_T")


class SingleFlight(Generic[_K, _T]):
    """Calls that are under way, by key.

    Args:
        tasks: Owns the calls. A call continues when those who wait for it are cancelled.
    """

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._under_way: dict[_K, asyncio.Task[_T]] = {}

    async def call(self, key: _K, function: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Return the result of `function`, or of the call for `key` that is under way. Raises what that raises.

        Raises:
            Unavailable: The owner of the calls has ended.
        """
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = self._tasks.start(function())
            task.add_done_callback(lambda done: self._end(key, done))
        await asyncio.wait([task])  # if this task is cancelled, the call is not: others may wait for it
        if task.cancelled():
            raise Unavailable("the mirror was exited meanwhile")
        return task.result()

    def _end(self, key: _K, task: asyncio.Task[_T]) -> None:
        if self._under_way.get(key) is task:
            del self._under_way[key]
