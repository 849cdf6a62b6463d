"""Stands before a router's own routes: what is too much does not get to them, and what they raise not to the host."""

from __future__ import annotations

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peili.mirror.doors.request_checks import check_head
from peili.mirror.doors.response import ResponseWriter
from peili.mirror.oci.refusal import BOUNDS, HTTPError
from peili.mirror.parts import Parts


class RouterRoutes:
    """`app`; where it raises, that is logged and, if still possible, answered with 503."""

    def __init__(self, app: ASGIApp, parts: Parts) -> None:
        self._app = app
        self._limits = parts.limits
        self._limited = parts.metrics.limited
        self._log = parts.log.getChild("router")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            if scope["type"] == "http":
                check_head(scope, self._limits)
            await self._app(scope, receive, sending)
        except HTTPError as refusal:
            if refusal.status in BOUNDS:
                self._limited.add(BOUNDS[refusal.status])
            await ResponseWriter(scope, send, self._limits.reader_timeout).refuse(refusal)
        except Exception:  # noqa: BLE001 - a stranger's, and the host lives on
            self._log.exception("a plug-in failed at %s", scope["path"])
            if not started:
                await PlainTextResponse("a plug-in failed\n", status_code=503)(scope, receive, send)
