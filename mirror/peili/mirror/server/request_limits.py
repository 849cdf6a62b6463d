"""Bounds what one connection can make uvicorn keep: the head of a request, and the requests that wait behind another.

It extends uvicorn's protocol on httptools. h11, uvicorn's other parser, reads one request at a time, and bounds its
head.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from peili.mirror.limits import KIB, Limits
from peili.mirror.oci.requests import host_error

_BODY_PIECE = 4 * KIB
"""Bytes of a request's body that are parsed at once."""
_HEAD_PIECE = KIB
"""Bytes of a request's head that are parsed at once."""
_HEAD_END = b"\r\n\r\n"
_NEXT_REQUEST = re.compile(rb"\r\n\r\n[A-Z-]{3,20} ")
"""Where a request begins behind another one. A body may match, too, but a pipelined request has no body."""


def with_request_limits(
    protocol_class: type[asyncio.Protocol], limits: Limits, limited: Callable[[str], None]
) -> type[asyncio.Protocol]:
    """Return a subclass with `_RequestLimits`, if `protocol_class` is uvicorn's protocol on httptools."""
    if not issubclass(protocol_class, HttpToolsProtocol):
        return protocol_class
    attributes = {"limits": limits, "limited": staticmethod(limited)}
    return type("RequestLimitsProtocol", (_RequestLimits, protocol_class), attributes)


class HostHeaderCheck:
    """Passes on requests with exactly one well-formed Host header. Answers 400 to the others.

    Args:
        app: The app that receives the requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = host_error(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            response = PlainTextResponse(f"{problem}\n", status_code=400, headers={"Connection": "close"})
            await response(scope, receive, send)


class UvicornProtocol(asyncio.Protocol):
    """Declares the attributes of uvicorn's protocols that are used here."""

    app: ASGIApp
    config: uvicorn.Config


class _Cycle(Protocol):
    """A request and its response, in uvicorn's protocol on httptools."""

    more_body: bool
    response_complete: bool
    disconnected: bool
    message_event: asyncio.Event


class _UvicornHttpTools(UvicornProtocol):
    """Declares what only uvicorn's protocol on httptools has. The parser calls the `on_` methods."""

    transport: asyncio.Transport
    pipeline: deque[tuple[_Cycle, ASGIApp]]
    url: bytes
    headers: list[tuple[bytes, bytes]]

    if TYPE_CHECKING:

        def on_message_begin(self) -> None: ...
        def on_headers_complete(self) -> None: ...
        def on_message_complete(self) -> None: ...
        def on_response_complete(self) -> None: ...
        def _start_asgi_task(self, cycle: _Cycle, app: ASGIApp) -> None: ...


class _RequestLimits(_UvicornHttpTools):
    """Bounds the size of a request's head and the requests that wait behind another one. Checks the Host header.

    uvicorn makes an object of some kilobytes for each request, and continues to read as soon as an app waits for the
    client to disconnect. Here, the bytes behind a request are parsed only when its response is complete. Bytes are
    parsed in pieces, usually one head at a time, and the limits are checked after each piece.
    """

    limits: Limits
    limited: Callable[[str], None]
    _active_cycle: _Cycle | None = None
    _unparsed = b""
    _is_in_body = False
    _head_size: int | None = None
    """The bytes of the incomplete head; None between heads. The piece in which the head begins is not counted, because
    it may contain the end of another request. So the number may be too small by up to one piece.
    """
    _head_began = False
    """Whether a head began in the piece that is parsed now."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.app = HostHeaderCheck(self.app)

    @override
    def data_received(self, data: bytes) -> None:
        self._unparsed = self._unparsed + data if self._unparsed else data
        self._parse_next()

    def _parse_next(self) -> None:
        """Parse up to the end of the next complete request, or all bytes if there is none."""
        data, self._unparsed, start = self._unparsed, b"", 0
        while start < len(data) and not self._is_responding():
            stop = self._end_of_piece(data, start)
            self._parse(data[start:stop] if stop - start < len(data) else data)
            start = stop
            if self.transport.is_closing():
                return
        self._unparsed = data[start:]
        if (limit := self._exceeded_limit()) is not None:
            self._abort(limit)

    def _is_responding(self) -> bool:
        """Return whether a complete request waits for the end of its response."""
        cycle = self._active_cycle
        return cycle is not None and not (cycle.response_complete or cycle.more_body)

    def _end_of_piece(self, data: bytes, start: int) -> int:
        """Return where the next piece ends: usually at the end of a head."""
        if self._is_in_body:
            return min(start + _BODY_PIECE, len(data))
        head_end = data.find(_HEAD_END, start, start + _HEAD_PIECE)
        return head_end + len(_HEAD_END) if head_end >= 0 else min(start + _HEAD_PIECE, len(data))

    def _parse(self, piece: bytes) -> None:
        was_in_head, self._head_began = self._head_size is not None, False
        super().data_received(piece)
        if was_in_head and self._head_size is not None and not self._head_began:
            self._head_size += len(piece)
        if self._head_size is not None and max(self._head_size, self._parsed_head_size()) > self.limits.header_size:
            self._abort("header_size")
        elif len(self.pipeline) > self.limits.pipeline:
            self._abort("pipeline")

    def _parsed_head_size(self) -> int:
        """Return the approximate number of bytes of the current head that were parsed."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _abort(self, limit: str) -> None:
        """Close the connection because it exceeds `limit`."""
        self.limited(limit)
        self.transport.abort()

    def _exceeded_limit(self) -> str | None:
        """Return the limit that the unparsed requests exceed. Their number is estimated with a regular expression."""
        if not self._unparsed:
            return None
        if len(self.pipeline) + len(_NEXT_REQUEST.findall(self._unparsed)) >= self.limits.pipeline:
            return "pipeline"
        return "pipeline_size" if len(self._unparsed) > self.limits.pipeline_size else None

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.pipeline.clear()
        self._unparsed = b""
        if self._active_cycle is not None:  # uvicorn notifies only the request that arrived last
            self._active_cycle.disconnected = True
            self._active_cycle.message_event.set()
            self._active_cycle = None

    @override
    def on_message_begin(self) -> None:
        self._head_size, self._head_began = 0, True
        super().on_message_begin()

    @override
    def on_headers_complete(self) -> None:
        if self._parsed_head_size() > self.limits.header_size:
            return  # hides the request from uvicorn; `_parse` then closes the connection
        self._head_size = None
        self._is_in_body = True
        super().on_headers_complete()

    @override
    def on_message_complete(self) -> None:
        self._is_in_body = False
        super().on_message_complete()

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._unparsed and not self.transport.is_closing():
            self._parse_next()

    @override
    def _start_asgi_task(self, cycle: _Cycle, app: ASGIApp) -> None:
        self._active_cycle = cycle
        super()._start_asgi_task(cycle, app)
