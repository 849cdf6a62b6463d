"""Ends the work on a request when the client disconnects, or when the door cuts the response off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from types import TracebackType
from typing import Self

from starlette.types import Receive

_WATCH_DELAY = 0.05
"""Seconds after which a task waits for the client's disconnect. Most responses are complete before."""


class RequestScope:
    """``async with RequestScope(…)`` cancels its body when the client disconnects, or when `cancel` is called.

    The cancellation ends at the exit of the scope, without an error. The scope is entered and exited in one task.

    Args:
        receive: The ASGI receive callable of the request.
        scopes: The open scopes of a door. The scope is among them while it is entered.

    Attributes:
        closed: Set when the scope is exited.
    """

    def __init__(self, receive: Receive, scopes: set[RequestScope]) -> None:
        self.closed = asyncio.Event()
        self._receive = receive
        self._scopes = scopes
        self._is_cancelled = False
        self._watcher: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Cancel the body. Idempotent."""
        if not self._is_cancelled and not self.closed.is_set():
            self._is_cancelled = True
            self._task.cancel()

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("not in a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(_WATCH_DELAY, self._start_watcher)
        self._scopes.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._scopes.discard(self)
        self.closed.set()
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        # As in asyncio.timeout: if other code has cancelled the task, too, that cancellation continues.
        return self._is_cancelled and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError

    def _start_watcher(self) -> None:
        self._watcher = asyncio.create_task(self._cancel_on_disconnect())

    async def _cancel_on_disconnect(self) -> None:
        with contextlib.suppress(Exception):  # if `receive` raises an error, the client has disconnected, too
            while (await self._receive())["type"] != "http.disconnect":
                pass
        self.cancel()


async def wait_closed(scopes: Collection[RequestScope], timeout: float) -> None:
    """Wait up to `timeout` seconds until all scopes that are in `scopes` now are closed."""
    waiting = [asyncio.create_task(each.closed.wait()) for each in scopes]
    if waiting:
        await asyncio.wait(waiting, timeout=timeout)
        for each in waiting:
            each.cancel()
