"""The ops app: ``/livez``, ``/readyz``, ``/metrics`` and ``/status`` for operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from peili.mirror.metrics.counters import Family
from peili.mirror.server.protocol import HostHeaderCheck


def ops_app(
    readiness: Callable[[], Mapping[str, bool]],
    ready: Callable[[], bool],
    figures: Callable[[], Iterable[Family]],
    status: Callable[[], Mapping[str, Any]],
) -> ASGIApp:
    """Return the ops app.

    Args:
        readiness: Returns whether each part of the mirror is ready, by its name: the document of ``/readyz``.
        ready: Returns whether the mirror is ready. If not, the status of ``/readyz`` is 503.
        figures: Returns the metrics. ``/metrics`` shows them in the formats of Prometheus. Its status is 501 if
            prometheus_client is not installed.
        status: Returns the document of ``/status``.
    """

    async def livez(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        return JSONResponse(dict(readiness()), status_code=200 if ready() else 503)

    async def metrics(request: Request) -> Response:
        try:
            from peili.mirror.metrics import prometheus  # noqa: PLC0415 - needs prometheus_client, which is optional
        except ImportError as error:
            return PlainTextResponse(f"{error}\n", status_code=501)
        text, media_type = prometheus.page(figures(), request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": media_type})

    async def show_status(request: Request) -> Response:
        return JSONResponse(status())

    pages = {"/livez": livez, "/readyz": readyz, "/metrics": metrics, "/status": show_status}
    return HostHeaderCheck(Starlette(routes=[Route(path, page) for path, page in pages.items()]))
