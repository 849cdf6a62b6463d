"""Extends uvicorn's connections with what a door needs: limits, timeouts, and a socket writer for bodies.

Up to four mixins extend uvicorn's protocol class. Each has one task:

    _PeerNames            tells the app which names the client's certificate shows (only with TLS)
    _RequestTimeouts      closes a connection whose request does not arrive in time, or whose response is unfinished
    _SocketWriterMixin    offers apps a socket writer (only on Linux, without TLS, with httptools)
    _RequestLimits        bounds the size of a request's head, and the requests that wait on a connection (only with
                          httptools; h11, uvicorn's other parser, reads one request at a time and bounds its head)

A socket writer sends the bytes of a body itself. Afterwards, uvicorn receives a body message that contains an
`_AlreadySent` of the same length instead of the bytes. uvicorn counts it and writes it to its transport. That is a
`_Transport`, which drops it.

A door leaves a response unfinished on purpose if the content is cut off, if the client reads nothing, or if the mirror
drains. uvicorn would log that as an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from peili.mirror.limits import KIB, Limits
from peili.mirror.oci.requests import host_error
from peili.mirror.server.acceptor import ConnectionSlot
from peili.mirror.server.socket_writer import DirectSocketWriter, SocketSend
from peili.mirror.support.deadlines import Countdown
from peili.mirror.tls.peer_tls import PEER_NAMES, certificate_names

LINGER = 1.0
"""Seconds for which a client may still read what was sent before its connection was closed."""

_BODY_PIECE = 4 * KIB
"""Bytes of a request's body that are parsed at once."""
_HEAD_PIECE = KIB
"""Bytes of a request's head that are parsed at once."""
_HEAD_END = b"\r\n\r\n"
_NEXT_REQUEST = re.compile(rb"\r\n\r\n[A-Z-]{3,20} ")
"""Where a request begins behind another one. A body may match, too, but a pipelined request has no body."""


def http_protocol() -> type[asyncio.Protocol]:
    """Return the protocol class for host agents that run uvicorn themselves.

    Use it as ``uvicorn.Config(app, http=http_protocol())``. Doors then let the kernel send their bytes, unless
    middleware around them wraps `send`. A connection is closed if more requests wait on it than the default values of
    ``limits.pipeline`` and ``limits.pipeline_size`` allow, or if a request's head is longer than that of
    ``limits.header_size``. A request without exactly one well-formed Host header is answered with 400. Everything else
    is as in uvicorn's own protocol.
    """
    return _with_socket_writer(_with_request_limits(AutoHTTPProtocol, Limits(), lambda _: None))


def protocol_factory(
    config: uvicorn.Config, limits: Limits, limited: Callable[[str], None]
) -> Callable[[ConnectionSlot, ServerState, dict[str, Any]], asyncio.Protocol]:
    """Return a function that makes the protocols of a server.

    The head of a request must be complete within ``limits.header_timeout`` seconds after the connection was made, or
    after its keep-alive time, and within ``limits.header_size`` bytes. The requests that wait on one connection are
    bounded by ``limits.pipeline`` (their number) and ``limits.pipeline_size`` (their bytes).

    Args:
        config: The configuration of the server, already loaded.
        limits: See above.
        limited: Called with the name of the limit for each connection that is closed because of it.
    """
    config.h11_max_incomplete_event_size = limits.header_size  # if httptools is not installed
    bases = (
        _PeerNames,
        _RequestTimeouts,
        _with_socket_writer(_with_request_limits(config.http_protocol_class, limits, limited)),
    )
    protocol_class: Any = type("DoorProtocol", bases, {"limits": limits, "limited": staticmethod(limited)})

    def make_protocol(slot: ConnectionSlot, state: ServerState, app_state: dict[str, Any]) -> asyncio.Protocol:
        protocol: _RequestTimeouts = protocol_class(config, state, app_state)
        protocol.slot = slot
        return protocol

    return make_protocol


def _with_request_limits(
    protocol_class: type[asyncio.Protocol], limits: Limits, limited: Callable[[str], None]
) -> type[asyncio.Protocol]:
    """Return a subclass with `_RequestLimits`, if `protocol_class` is uvicorn's protocol on httptools."""
    if not issubclass(protocol_class, HttpToolsProtocol):
        return protocol_class
    attributes = {"limits": limits, "limited": staticmethod(limited)}
    return type("RequestLimitsProtocol", (_RequestLimits, protocol_class), attributes)


def _with_socket_writer(protocol_class: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """Return a subclass with a socket writer, if that is possible.

    It needs Linux and uvicorn's protocol on httptools: only that one passes the body of a message to its transport
    unchanged.
    """
    if sys.platform != "linux" or not issubclass(protocol_class, HttpToolsProtocol):
        return protocol_class
    return type("SocketWriterProtocol", (_SocketWriterMixin, protocol_class), {})


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


class _UvicornProtocol(asyncio.Protocol):
    """Declares the attributes of uvicorn's protocols that are used here."""

    app: ASGIApp
    config: uvicorn.Config


class _Cycle(Protocol):
    """A request and its response, in uvicorn's protocol on httptools."""

    more_body: bool
    response_complete: bool
    disconnected: bool
    message_event: asyncio.Event


class _UvicornHttpTools(_UvicornProtocol):
    """Declares the attributes that only uvicorn's protocol on httptools has. The parser calls the `on_` methods."""

    transport: asyncio.Transport
    pipeline: deque[tuple[_Cycle, ASGIApp]]
    url: bytes
    headers: list[tuple[bytes, bytes]]

    def on_message_begin(self) -> None:
        super().on_message_begin()  # type: ignore[misc]  # pyright: ignore

    def on_headers_complete(self) -> None:
        super().on_headers_complete()  # type: ignore[misc]  # pyright: ignore

    def on_message_complete(self) -> None:
        super().on_message_complete()  # type: ignore[misc]  # pyright: ignore

    def on_response_complete(self) -> None:
        super().on_response_complete()  # type: ignore[misc]  # pyright: ignore

    def _start_asgi_task(self, cycle: _Cycle, app: ASGIApp) -> None:
        super()._start_asgi_task(cycle, app)  # type: ignore[misc]  # pyright: ignore


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


class _SocketWriterMixin(_UvicornProtocol):
    """Offers the app a socket writer."""

    _socket_writer: DirectSocketWriter | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if transport.get_extra_info("sslcontext") is not None:
            super().connection_made(transport)
            return
        # The transports of uvloop have the same methods, but are not subclasses of asyncio's.
        tcp_transport = cast(asyncio.Transport, transport)
        super().connection_made(cast(asyncio.Transport, _Transport(tcp_transport)))
        self._socket_writer = DirectSocketWriter(tcp_transport)
        self.app = _add_socket_writer(self.app, self._socket_writer)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._socket_writer is not None:
            self._socket_writer.connection_lost()
        super().connection_lost(exc)


def _add_socket_writer(app: ASGIApp, writer: DirectSocketWriter) -> ASGIApp:
    """Return an app that calls `app` with a `send` that has the socket writer."""

    async def app_with_writer(scope: Scope, receive: Receive, send: Send) -> None:
        is_finished = False

        async def reporting_send(message: Message) -> None:
            nonlocal is_finished
            if message["type"] == "http.response.body":
                if count := writer.take_sent_count():
                    await send({"type": "http.response.body", "body": _AlreadySent(count), "more_body": True})
                if not message.get("more_body", False):
                    is_finished = True
                    writer.close()  # not later, because the next request may start before the app returns
            await send(message)

        try:
            await app(scope, receive, SocketSend(reporting_send, writer))
        finally:
            if not is_finished:
                writer.close()  # its duplicate of the socket would keep the connection open
        if not is_finished:
            await writer.close_lost_connection()  # so that uvicorn does not report the response as unfinished

    return app_with_writer


class _AlreadySent:
    """Stands for `count` bytes of a body that were sent already."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


class _Transport:
    """The transport of a connection, as uvicorn sees it. Drops what was sent already."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._write = transport.write

    def write(self, data: bytes | _AlreadySent) -> None:
        if not isinstance(data, _AlreadySent):
            self._write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def _lost_app(scope: Scope, receive: Receive, send: Send) -> None:
    """The app of a lost connection. It is never called."""


class _PeerNames(_UvicornProtocol):
    """Adds the names in the verified certificate of the client to the scope of each request."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        certificate = transport.get_extra_info("peercert")
        if certificate:
            app, names = self.app, certificate_names(certificate)

            async def app_with_names(scope: Scope, receive: Receive, send: Send) -> None:
                scope[PEER_NAMES] = names
                await app(scope, receive, send)

            self.app = app_with_names


class _RequestTimeouts(_UvicornProtocol):
    """Closes a connection whose request does not arrive in time, or whose response was left unfinished."""

    limits: Limits
    limited: Callable[[str], None]
    slot: ConnectionSlot
    _timer: Countdown | None = None
    _transport: asyncio.Transport
    _is_lost: asyncio.Event

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._transport = cast(asyncio.Transport, transport)
        self._is_lost = asyncio.Event()
        self.slot.transport = self._transport
        self._start_timer(self.limits.header_timeout)
        self.app = self._add_timeouts(self.app)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.slot.release()
        super().connection_lost(exc)
        self.app = _lost_app  # breaks a reference cycle, so that this object is freed at once
        self._is_lost.set()

    def _add_timeouts(self, app: ASGIApp) -> ASGIApp:
        """Return an app that stops the timer during a request, and closes the connection after an unfinished one."""

        async def app_with_timeouts(scope: Scope, receive: Receive, send: Send) -> None:
            self._stop_timer()
            self.slot.set_busy()
            is_finished = False

            async def noting_send(message: Message) -> None:
                nonlocal is_finished
                if message["type"] == "http.response.start" and self.slot.is_outdated():
                    # The client may have no right certificate any more. Its next connection shows that.
                    message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
                is_finished = message["type"] == "http.response.body" and not message.get("more_body", False)
                await send(message)
                if is_finished:
                    self._start_timer(self.config.timeout_keep_alive + self.limits.header_timeout)

            await app(scope, receive, noting_send)
            if not is_finished:
                await self._close(receive)

        return app_with_timeouts

    async def _close(self, receive: Receive) -> None:
        """Close the connection, and wait until uvicorn notices. Otherwise it would log an unfinished response."""
        self._transport.close()
        try:
            async with asyncio.timeout(LINGER):
                await self._is_lost.wait()
        except TimeoutError:
            self._transport.abort()
            await self._is_lost.wait()
        # If another request is behind this one, only `receive` makes uvicorn notice that the client has disconnected.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                while (await receive())["type"] != "http.disconnect":
                    pass

    def _start_timer(self, seconds: float) -> None:
        """Expect the next request within `seconds`."""
        self._stop_timer()
        if not self._is_lost.is_set():
            self.slot.set_idle()
            self._timer = Countdown(seconds, partial(self._on_timeout, seconds))

    def _on_timeout(self, seconds: float) -> None:
        if self._transport.get_write_buffer_size() > 0:  # a slow client still reads the previous response
            self._start_timer(seconds)
        else:
            self.limited("header_timeout")
            self.slot.close_soon()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
