"""The ops app: `/livez` and `/readyz`, for whoever looks after the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route


def ops_app(readiness: Callable[[], Mapping[str, bool]], ready: Callable[[], bool]) -> Starlette:
    """`readiness` says of each part whether it is ready; ``/readyz`` tells that, and answers 503 until `ready`."""

    async def livez(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        return JSONResponse(dict(readiness()), status_code=200 if ready() else 503)

    return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz)])
