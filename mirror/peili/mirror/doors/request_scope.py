"""Ends the work on a request when the one who asked goes away, or the door is closed."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType

from starlette.types import Receive

SOON = 0.05
"""Seconds after which it is worth a task to wait for a client's leaving: most answers are given by then."""


class RequestScopes:
    """The clients that a door answers."""

    def __init__(self) -> None:
        self._present: set[RequestScope] = set()

    def visit(self, receive: Receive) -> RequestScope:
        """A client that has come, to be answered within ``async with``."""
        return RequestScope(receive, self._present)

    async def drain(self, timeout: float) -> bool:
        """Give those present `timeout` seconds to be answered, then send them away; whether any were.

        Others may come meanwhile.
        """
        await _all_gone(self._present, timeout)
        late = set(self._present)
        for each in late:
            each.leave()
        await _all_gone(late, timeout)
        return bool(late)


class RequestScope:
    """What is within, in the same task, is cancelled when the client disconnects, or is sent away; it then ends here,
    without an error.
    """

    def __init__(self, receive: Receive, present: set[RequestScope]) -> None:
        self.gone = asyncio.Event()
        self._receive = receive
        self._present = present
        self._leaves = False
        self._watcher: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """End the work."""
        if not self._leaves and not self.gone.is_set():
            self._leaves = True
            self._task.cancel()

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("not in a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(SOON, self._watch)
        self._present.add(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._present.discard(self)
        self.gone.set()
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        # As asyncio.timeout does: a cancellation that came from somebody else as well goes on.
        return self._leaves and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError

    def _watch(self) -> None:
        self._watcher = asyncio.create_task(self._leave_when_disconnected())

    async def _leave_when_disconnected(self) -> None:
        with contextlib.suppress(Exception):  # a broken `receive` means the same as a client that left
            while (await self._receive())["type"] != "http.disconnect":
                pass
        self.leave()


async def _all_gone(present: set[RequestScope], timeout: float) -> None:
    """Returns when all who are present now have gone, at the latest after `timeout` seconds."""
    waiting = [asyncio.create_task(each.gone.wait()) for each in present]
    if waiting:
        await asyncio.wait(waiting, timeout=timeout)
        for each in waiting:
            each.cancel()
