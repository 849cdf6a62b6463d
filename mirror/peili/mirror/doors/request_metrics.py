"""Counts the requests at a door, and the bytes of content that leave by it, from outside of all that answers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peili.mirror.metrics.counters import LOCAL, Metrics
from peili.mirror.server.socket_writer import CountingSocketWriter, SocketSend, get_socket_writer

ROUTER_PATH = "/_router"
"""Below it the peer door is the router's. No repository's name begins with an underscore."""
_SCOPE_KEY = "peili.answer"
_NO_ENDPOINT = "none"


@dataclass(slots=True)
class RequestRecord:
    """What is known of one request and its answer. The door inside fills in `endpoint` and `source`."""

    endpoint: str
    source: str = ""
    status: int | None = None
    length: int = 0
    finished: bool = False

    def start(self, message: Message) -> None:
        """The answer begins."""
        self.status = message["status"]
        self.length = next((int(value) for name, value in message["headers"] if name == b"content-length"), 0)

    @property
    def has_content(self) -> bool:
        """Whether the body is content, from `source`; not an error or a list."""
        return self.source != "" and self.status in {200, 206}


def request_record(scope: Scope) -> RequestRecord:
    """What is noted of the request of `scope`; of nobody's interest where it did not come through `RequestMetrics`."""
    return cast("RequestRecord", scope.setdefault(_SCOPE_KEY, RequestRecord(_NO_ENDPOINT)))


class RequestMetrics:
    """`app`, which is the door `door`, with its requests counted."""

    def __init__(self, app: ASGIApp, door: str, metrics: Metrics) -> None:
        self._app = app
        self._door = door
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = scope[_SCOPE_KEY] = RequestRecord(_endpoint(scope))
        try:
            await self._app(scope, receive, self._watching(send, answer))
        finally:
            self._count(scope, answer)

    def _watching(self, send: Send, answer: RequestRecord) -> Send:
        def count(size: int) -> None:
            if answer.has_content and size:
                self._metrics.sent.add(self._door, answer.source, by=size)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.start(message)
            await send(message)
            if message["type"] == "http.response.body":
                answer.finished = not message.get("more_body", False)
                count(len(message.get("body", b"")))
            elif message["type"] == "http.response.pathsend":
                answer.finished = True
                count(answer.length)

        socket_writer = get_socket_writer(send)
        return sending if socket_writer is None else SocketSend(sending, CountingSocketWriter(socket_writer, count))

    def _count(self, scope: Scope, answer: RequestRecord) -> None:
        status = "none" if answer.status is None else str(answer.status)
        method = scope["method"] if scope["method"] in {"GET", "HEAD"} else "other"
        source = answer.source if answer.has_content else ""
        self._metrics.requests.add(self._door, answer.endpoint, method, status, source)
        if answer.status is not None and not answer.finished:
            self._metrics.cut.add(self._door)
        if self._door == LOCAL:
            self._metrics.asked(_user_agent(scope), time.time())


def _endpoint(scope: Scope) -> str:
    inner = scope["path"][len(scope.get("root_path", "")) :]
    return "router" if inner.startswith(f"{ROUTER_PATH}/") else _NO_ENDPOINT


def _user_agent(scope: Scope) -> str:
    found = next((value for name, value in scope["headers"] if name == b"user-agent"), b"")
    return cast("bytes", found).decode("latin-1")
