"""Keeps what a router's own routes raise from the host's server."""

from __future__ import annotations

import logging

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Shielded:
    """`app`; where it raises, that is logged and, if still possible, answered with 503."""

    def __init__(self, app: ASGIApp, log: logging.Logger) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:  # noqa: BLE001 - a stranger's, and the host lives on
            self._log.exception("a plug-in failed at %s", scope["path"])
            if not started:
                await PlainTextResponse("a plug-in failed\n", status_code=503)(scope, receive, send)
