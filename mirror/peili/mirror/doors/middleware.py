"""ASGI middleware around a door: counts its requests, and answers for routes of plug-ins that fail."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import cast

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peili.mirror.accounting.accounting import Accounting
from peili.mirror.doors.response import ResponseWriter
from peili.mirror.metrics.counters import LOCAL, Metrics
from peili.mirror.metrics.requests import RequestRecord
from peili.mirror.metrics.spans import Spans
from peili.mirror.oci.requests import LIMIT_OF_STATUS, HTTPError, check_head
from peili.mirror.plugins.interfaces import Context
from peili.mirror.server.socket_writer import CountingSocketWriter, SocketSend, get_socket_writer
from peili.mirror.support.tasks import is_own_failure

ROUTER_PATH = "/_router"
"""Requests to the peer door below this path go to the router's routes. No repository name begins with an underscore."""
RESOLVER_PATH = "/_resolver"
"""The same for the resolver's routes."""
_SCOPE_KEY = "peili.request_record"
_NO_ENDPOINT = "none"


def request_record(scope: Scope) -> RequestRecord:
    """Return the record of the request of `scope`. `RequestMetrics` creates it, and reads it in the end."""
    return cast("RequestRecord", scope.setdefault(_SCOPE_KEY, RequestRecord("", _NO_ENDPOINT)))


class RequestMetrics:
    """Counts the requests to a door, and the bytes of content that it sends.

    Args:
        app: The door.
        door: The name of the door in the metrics.
        metrics: Where to count.
        accounting: Learns of each request to the local door that has ended.
        spans: Makes a span for each request, if the program has set up OpenTelemetry.
    """

    def __init__(self, app: ASGIApp, door: str, metrics: Metrics, accounting: Accounting, spans: Spans) -> None:
        self._app = app
        self._door = door
        self._metrics = metrics
        self._accounting = accounting
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        inner_path = scope["path"][len(scope.get("root_path", "")) :]
        endpoint = "router" if inner_path.startswith(f"{ROUTER_PATH}/") else _NO_ENDPOINT
        record = scope[_SCOPE_KEY] = RequestRecord(self._door, endpoint, scope["method"] == "GET")
        record.client = (scope.get("client") or ("",))[0]
        self._metrics.active.add(record)
        try:
            with self._spans.request(scope, record) if self._spans.are_on else nullcontext():
                await self._app(scope, receive, self._count_bytes(send, record))
        finally:
            self._metrics.active.discard(record)
            self._count_request(scope, record)

    def _count_bytes(self, send: Send, record: RequestRecord) -> Send:
        def count(size: int) -> None:
            if record.has_content and size:
                record.sent += size
                self._metrics.sent.add(self._door, record.source, amount=size)

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.start(message)
            await send(message)
            if message["type"] == "http.response.body":
                record.is_finished = not message.get("more_body", False)
                count(len(message.get("body", b"")))
            elif message["type"] == "http.response.pathsend":
                record.is_finished = True
                count(record.length)

        writer = get_socket_writer(send)
        return counting_send if writer is None else SocketSend(counting_send, CountingSocketWriter(writer, count))

    def _count_request(self, scope: Scope, record: RequestRecord) -> None:
        metrics, door = self._metrics, self._door
        status = "none" if record.status is None else str(record.status)
        method = scope["method"] if scope["method"] in {"GET", "HEAD"} else "other"
        source = record.source if record.has_content else ""
        metrics.requests.add(door, record.endpoint, method, status, source)
        metrics.request_seconds.add(time.monotonic() - record.started, door, record.endpoint, record.answer)
        if record.is_cut:
            metrics.cut.add(door)
        if door == LOCAL:
            user_agent: bytes = next((value for name, value in scope["headers"] if name == b"user-agent"), b"")
            metrics.clients.count(user_agent.decode("latin-1"), time.time())
            self._accounting.ended(record)


class PluginRouteMiddleware:
    """Refuses requests with a malformed or too large head, and answers 503 if a route of the router fails.

    An error of a route is logged and not passed on to the host agent.

    Args:
        app: The app with the routes.
        context: Its limits bound the head of a request, its log receives the errors of routes.
    """

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self._app = app
        self._limits = context.limits
        self._limited = context.limited
        self._log = context.log.getChild("router")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def noting_send(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            if scope["type"] == "http":
                check_head(scope, self._limits)
            await self._app(scope, receive, noting_send)
        except HTTPError as error:
            if error.status in LIMIT_OF_STATUS:
                self._limited(LIMIT_OF_STATUS[error.status])
            await ResponseWriter(scope, send, self._limits.reader_timeout).error(error)
        except BaseException as error:
            if not is_own_failure(error):
                raise
            self._log.exception("a plug-in failed at %s", scope["path"])
            if not has_started:
                await PlainTextResponse("a plug-in failed\n", status_code=503)(scope, receive, send)
