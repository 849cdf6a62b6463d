"""The ops app: `/livez`, `/readyz`, `/metrics` and `/status`, for whoever looks after the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from peili.mirror.metrics.counters import Family


def ops_app(
    readiness: Callable[[], Mapping[str, bool]],
    ready: Callable[[], bool],
    figures: Callable[[], Iterable[Family]],
    status: Callable[[], Mapping[str, Any]],
) -> Starlette:
    """`readiness` says of each part whether it is ready; ``/readyz`` tells that, and answers 503 until `ready`.

    ``/metrics`` has the `figures` in Prometheus's formats, or 501 where prometheus_client is not installed; ``/status``
    is `status` as JSON.
    """

    async def livez(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        return JSONResponse(dict(readiness()), status_code=200 if ready() else 503)

    async def metrics(request: Request) -> Response:
        try:
            from peili.mirror.metrics import prometheus  # noqa: PLC0415 - needs prometheus_client, which may not be there
        except ImportError as error:
            return PlainTextResponse(f"{error}\n", status_code=501)
        text, media_type = prometheus.page(figures(), request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": media_type})

    async def tell(request: Request) -> Response:
        return JSONResponse(status())

    pages = {"/livez": livez, "/readyz": readyz, "/metrics": metrics, "/status": tell}
    return Starlette(routes=[Route(path, page) for path, page in pages.items()])
