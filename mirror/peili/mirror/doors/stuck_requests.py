"""Answers the runtime if its request is stuck in a plug-in.

Each call of a plug-in has a deadline, at whose end the task of the request is cancelled. A plug-in may ignore that, for
example with a bare ``except:`` in a loop. Nothing can end such a call, but the runtime would wait for it forever.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import FrameType
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peili.mirror.doors.response import ResponseWriter
from peili.mirror.metrics.counters import LOCAL
from peili.mirror.oci.requests import BLOB_UNKNOWN, HTTPError
from peili.mirror.plugins.interfaces import Context
from peili.mirror.server.socket_writer import get_socket_writer, wrap_send
from peili.mirror.support.deadlines import ON_OVERRUN
from peili.mirror.support.tasks import Tasks

_ASYNCIO = Path(asyncio.__file__).parent


class StuckRequests:
    """Answers 404 in the place of the task of a stuck request, so that the runtime goes upstream.

    If the response has started, its connection is closed, on a server of ours. Other servers offer no way to do that.

    Args:
        app: The local door.
        context: The context of the mirror.
    """

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self._app = app
        self._reader_timeout = context.limits.reader_timeout
        self._log = context.log.getChild(LOCAL)
        self._answers = Tasks(self._log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = asyncio.current_task()
        has_started = is_abandoned = False

        async def noting_send(message: Message) -> None:
            nonlocal has_started
            if is_abandoned:
                raise ConnectionAbortedError("the request was answered while its task was stuck")
            has_started = True
            await send(message)

        def abandon(task: asyncio.Task[Any]) -> None:
            nonlocal is_abandoned
            if task is not request or is_abandoned:
                return
            is_abandoned = True
            text = "%s: not awaited: a plug-in ignores that it was cancelled; it is in or below %s"
            self._log.error(text, scope["path"], _place(task))
            if not has_started:
                error = HTTPError(404, BLOB_UNKNOWN, "a plug-in of this mirror does not answer")
                self._answers.start(ResponseWriter(scope, send, self._reader_timeout).error(error))
            elif (writer := get_socket_writer(send)) is not None:
                writer.abort()

        token = ON_OVERRUN.set(abandon)
        try:
            await self._app(scope, receive, wrap_send(send, noting_send))
        finally:
            ON_OVERRUN.reset(token)


def _place(task: asyncio.Task[Any]) -> str:
    """Return where `task` waits: the innermost function that is not of asyncio, with its file and line."""
    place = "a plug-in"
    waiting: object = task.get_coro()
    while waiting is not None:
        frame: FrameType | None = getattr(waiting, "cr_frame", None)
        if frame is not None and Path(frame.f_code.co_filename).parent != _ASYNCIO:
            place = f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"
        waiting = getattr(waiting, "cr_await", None)
    return place
