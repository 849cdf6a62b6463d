"""The ops app, for operators: probes, metrics, the status, questions about images and peers, and a page.

Nothing in it changes anything.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from peili.mirror.errors import NotFound, Unavailable
from peili.mirror.inspection.inspector import Busy, Inspector
from peili.mirror.metrics.families import Family
from peili.mirror.oci.image_names import parse_image
from peili.mirror.server.request_limits import HostHeaderCheck
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.tasks import Broadcast

OPS_PATHS = frozenset(
    {"/", "/livez", "/readyz", "/metrics", "/status", "/history", "/events", "/find", "/try", "/ping", "/images"}
)
"""The paths of all pages."""
EVENT_INTERVAL = 1.0
"""Seconds between two events of ``/events``."""
_MOST_STREAMS = 16
_PAGE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class OpsMiddleware:
    """Passes on the requests for `OPS_PATHS` to the ops app, and all others to `app`.

    Args:
        app: The local door.
        ops: The ops app.
    """

    def __init__(self, app: ASGIApp, ops: ASGIApp) -> None:
        self._app = app
        self._ops = ops

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._ops if scope.get("path") in OPS_PATHS else self._app
        await app(scope, receive, send)


@dataclass(frozen=True, slots=True)
class OpsSources:
    """What the ops app shows.

    Attributes:
        readiness: Returns whether each part of the mirror is ready, by its name: the document of ``/readyz``.
        ready: Returns whether the mirror is ready. If not, the status of ``/readyz`` is 503.
        figures: Returns the metrics. ``/metrics`` shows them in the formats of Prometheus. Its status is 501 if
            prometheus_client is not installed.
        status: Returns the document of ``/status``.
        history: Returns the bytes of each minute.
        inspector: Answers ``/find``, ``/try``, ``/ping`` and ``/images``.
        is_running: Returns whether the mirror is entered. If not, questions get 503.
    """

    readiness: Callable[[], Mapping[str, bool]]
    ready: Callable[[], bool]
    figures: Callable[[], Iterable[Family]]
    status: Callable[[], Mapping[str, Any]]
    history: Callable[[], list[Mapping[str, Any]]]
    inspector: Inspector
    is_running: Callable[[], bool]


class StatusStreams:
    """The streams of ``/events``: the status each second, as server-sent events.

    Args:
        status: Returns the document of ``/status``.
    """

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status
        self._open = 0
        self._closing = Broadcast()

    def close(self) -> None:
        """End all streams. A browser then connects again."""
        self._closing.notify()

    def response(self) -> Response:
        """Return a response that streams until the client disconnects, or until `close`."""
        if self._open >= _MOST_STREAMS:
            return PlainTextResponse("too many pages are open\n", status_code=429)
        return StreamingResponse(self._events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _events(self) -> AsyncGenerator[str]:
        self._open += 1
        closed = self._closing.next_change
        try:
            yield "retry: 2000\n\n"
            while not closed.is_set():
                yield f"data: {json.dumps(self._status())}\n\n"
                try:
                    async with Deadline(EVENT_INTERVAL):
                        await closed.wait()
                except TimeoutError:
                    continue
        finally:
            self._open -= 1


def ops_app(sources: OpsSources, streams: StatusStreams) -> ASGIApp:
    """Return the ops app.

    Args:
        sources: What it shows.
        streams: The streams of ``/events``. The owner closes them before serving ends.
    """

    async def page(request: Request) -> Response:
        text = resources.files("peili.mirror.doors").joinpath("page.html").read_bytes()
        return Response(text, headers=_PAGE_HEADERS)

    async def livez(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        return JSONResponse(dict(sources.readiness()), status_code=200 if sources.ready() else 503)

    async def metrics(request: Request) -> Response:
        try:
            from peili.mirror.metrics import prometheus  # noqa: PLC0415 - needs prometheus_client, which is optional
        except ImportError as error:
            return PlainTextResponse(f"{error}\n", status_code=501)
        text, media_type = prometheus.page(sources.figures(), request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": media_type})

    async def status(request: Request) -> Response:
        return JSONResponse(sources.status())

    async def history(request: Request) -> Response:
        return JSONResponse(sources.history())

    async def events(request: Request) -> Response:
        return streams.response()

    pages = {"/": page, "/livez": livez, "/readyz": readyz, "/metrics": metrics, "/status": status}
    pages |= {"/history": history, "/events": events, **_questions(sources)}
    return HostHeaderCheck(Starlette(routes=[Route(path, pages[path]) for path in OPS_PATHS]))


_Endpoint: TypeAlias = Callable[[Request], Coroutine[Any, Any, Response]]


def _questions(sources: OpsSources) -> dict[str, _Endpoint]:
    """Return the endpoints that ask peers."""
    inspector = sources.inspector

    async def find(request: Request) -> object:
        return await inspector.find(parse_image(request.query_params.get("image", "")))

    async def test(request: Request) -> object:
        return await inspector.test(parse_image(request.query_params.get("image", "")))

    async def ping(request: Request) -> object:
        return await inspector.ping(request.query_params.get("peer"))

    async def images(request: Request) -> object:
        return await inspector.images()

    questions = {"/find": find, "/try": test, "/ping": ping, "/images": images}
    return {path: _question(each, sources.is_running) for path, each in questions.items()}


def _question(ask: Callable[[Request], Awaitable[object]], is_running: Callable[[], bool]) -> _Endpoint:
    """Return an endpoint that answers with what `ask` returns, or with ``{"error": …}``, which is one line."""

    def refuse(status: int, error: object, headers: Mapping[str, str] | None = None) -> Response:
        return JSONResponse({"error": str(error)}, status, headers)

    async def endpoint(request: Request) -> Response:
        if not is_running():
            return refuse(503, "the mirror is not running")
        try:
            return JSONResponse(await ask(request))
        except ValueError as error:
            return refuse(400, error)
        except NotFound as error:
            return refuse(404, error)
        except Busy as error:
            return refuse(429, error, {"Retry-After": "1"})
        except Unavailable as error:
            return refuse(503, error)

    return endpoint
