"""Extends uvicorn's connections with what a door needs: limits, timeouts, and a socket writer for bodies.

Up to four mixins extend uvicorn's protocol class. Each has one task:

    _PeerNames            tells the app which names the client's certificate shows (only with TLS)
    _RequestTimeouts      closes a connection whose request does not arrive in time, or whose response is unfinished
    _SocketWriterMixin    offers apps a socket writer (only on Linux, with httptools, and not over asyncio's TLS)
    _RequestLimits        bounds the size of a request's head, and the requests that wait on a connection; see
                          request_limits.py

A socket writer sends the bytes of a body itself. Afterwards, uvicorn receives a body message that contains an
`_AlreadySent` of the same length instead of the bytes. uvicorn counts it and writes it to its transport. That is a
`_Transport`, which drops it.

A door leaves a response unfinished on purpose if the content is cut off, if the client reads nothing, or if the mirror
drains. uvicorn would log that as an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from peili.mirror.limits import Limits
from peili.mirror.server.acceptor import ConnectionSlot
from peili.mirror.server.request_limits import UvicornProtocol, with_request_limits
from peili.mirror.server.socket_writer import DirectSocketWriter, SocketSend, TlsSocketWriter
from peili.mirror.server.tls_transport import TlsServerTransport
from peili.mirror.support.deadlines import Countdown
from peili.mirror.tls.identities import PEER_NAMES, certificate_names

LINGER = 1.0
"""Seconds for which a client may still read what was sent before its connection was closed."""


def http_protocol() -> type[asyncio.Protocol]:
    """Return the protocol class for host agents that run uvicorn themselves.

    Use it as ``uvicorn.Config(app, http=http_protocol())``. Doors then let the kernel send their bytes, unless
    middleware around them wraps `send`. A connection is closed if more requests wait on it than the default values of
    ``limits.pipeline`` and ``limits.pipeline_size`` allow, or if a request's head is longer than that of
    ``limits.header_size``. A request without exactly one well-formed Host header is answered with 400. Everything else
    is as in uvicorn's own protocol.
    """
    return _with_socket_writer(with_request_limits(AutoHTTPProtocol, Limits(), lambda _: None))


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
        _with_socket_writer(with_request_limits(config.http_protocol_class, limits, limited)),
    )
    protocol_class: Any = type("DoorProtocol", bases, {"limits": limits, "limited": staticmethod(limited)})

    def make_protocol(slot: ConnectionSlot, state: ServerState, app_state: dict[str, Any]) -> asyncio.Protocol:
        protocol: _RequestTimeouts = protocol_class(config, state, app_state)
        protocol.slot = slot
        return protocol

    return make_protocol


def _with_socket_writer(protocol_class: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """Return a subclass with a socket writer, if that is possible.

    It needs Linux and uvicorn's protocol on httptools: only that one passes the body of a message to its transport
    unchanged.
    """
    if sys.platform != "linux" or not issubclass(protocol_class, HttpToolsProtocol):
        return protocol_class
    return type("SocketWriterProtocol", (_SocketWriterMixin, protocol_class), {})


class _SocketWriterMixin(UvicornProtocol):
    """Offers the app a socket writer."""

    _socket_writer: DirectSocketWriter | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, TlsServerTransport):
            self._socket_writer = TlsSocketWriter(transport)
        elif transport.get_extra_info("sslcontext") is None:
            # The transports of uvloop have the same methods, but are not subclasses of asyncio's.
            self._socket_writer = DirectSocketWriter(cast(asyncio.Transport, transport))
        else:
            super().connection_made(transport)
            return
        super().connection_made(cast(asyncio.Transport, _Transport(cast(asyncio.Transport, transport))))
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


class _PeerNames(UvicornProtocol):
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


class _RequestTimeouts(UvicornProtocol):
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
