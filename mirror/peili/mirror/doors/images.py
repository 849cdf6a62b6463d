"""Answers other hosts that ask which images this host has (peer_api/images.py)."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from peili.mirror.errors import Unavailable
from peili.mirror.peer_api.images import IMAGES_PATH, MAX_IMAGES, ImageNames
from peili.mirror.peer_api.messages import JSON_HEADERS
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.interfaces import Context

_TTL = 1.0
"""Seconds for which an answer is used again, however many hosts ask."""


class ImagesRoute:
    """The route of the peer door that says which images this host has.

    Excluded images are not told, and neither are those that only some may pull.

    Args:
        context: The context of the peer door.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._reading = asyncio.Lock()
        self._body = b""
        self._expires = 0.0

    def route(self) -> Route:
        """Return the route for the peer door."""
        return Route(IMAGES_PATH, self._answer, methods=["GET"])

    async def _answer(self, request: Request) -> Response:
        now = asyncio.get_running_loop().time
        async with self._reading:
            if now() >= self._expires:
                try:
                    self._body = (await self._read()).encode()
                except Unavailable:
                    return Response(status_code=503)
                self._expires = now() + _TTL
        return Response(self._body, headers=JSON_HEADERS)

    async def _read(self) -> ImageNames:
        """List the images of the store. Raises Unavailable."""
        found = await call(self._context.store.images, self._context, "the store", allowed=(Unavailable,))
        names = [
            (name, each.digest) for name, each in found if not self._context.covers(name.registry, name.repository)
        ]
        return ImageNames(names[:MAX_IMAGES], len(names))
