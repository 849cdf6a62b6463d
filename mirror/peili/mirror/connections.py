"""What uvicorn's connections lack: a way past ASGI for bodies, an end for requests that never become whole, and one for
answers left unfinished.

A door leaves an answer unfinished on purpose: its content is cut off, its reader takes nothing, or the mirror drains.
uvicorn would report that as an error.
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

from peili.mirror.limits import Limits
from peili.mirror.outlet import Sending, SocketOutlet
from peili.mirror.patience import Countdown

LINGER = 1.0
"""Seconds for which a reader may still take what was sent before its connection was closed."""


def http_protocol() -> type[asyncio.Protocol]:
    """For hosts that run uvicorn themselves: ``uvicorn.Config(app, http=http_protocol())``.

    Doors that such a server runs without anything around them that wraps `send` let the kernel move their bytes; for
    everything else, and over TLS, it is uvicorn's own protocol, unchanged.
    """
    return _with_outlets(AutoHTTPProtocol)


def bound_connections(config: uvicorn.Config, limits: Limits, limited: Callable[[str], None]) -> None:
    """Let connections of `config`, which is loaded, have outlets, and end where they should.

    A request's head has to be whole ``limits.header_timeout`` seconds after the connection was made, or the time to
    keep it idle is over; and within ``limits.header_size`` bytes. `limited` hears of each that is ended for it.
    """
    bases = (_Bounded, _with_outlets(config.http_protocol_class))
    config.http_protocol_class = type("BoundedProtocol", bases, {"limits": limits, "limited": staticmethod(limited)})


def _with_outlets(protocol: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """Only the protocol on httptools hands a body to its transport as it came; others put it together anew."""
    if sys.platform != "linux" or not issubclass(protocol, HttpToolsProtocol):
        return protocol
    return type("OutletProtocol", (_Outlets, protocol), {})


class _Protocol(asyncio.Protocol):
    """The names of uvicorn's protocols that are needed here."""

    app: ASGIApp
    config: uvicorn.Config
    connections: set[Any]


class _Outlets(_Protocol):
    """Gives an app an outlet, and tells uvicorn, which counts the bytes of a body, of those that went by it."""

    _outlet: SocketOutlet | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if transport.get_extra_info("sslcontext") is not None:
            super().connection_made(transport)
            return
        # uvloop's transports are none of asyncio's classes; they only have the same methods.
        plain = cast(asyncio.Transport, transport)
        super().connection_made(cast(asyncio.Transport, _Transport(plain)))
        self._outlet = SocketOutlet(plain)
        self.app = _with_outlet(self.app, self._outlet)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._outlet is not None:
            self._outlet.lose()
        super().connection_lost(exc)


def _with_outlet(app: ASGIApp, outlet: SocketOutlet) -> ASGIApp:
    async def outletted(scope: Scope, receive: Receive, send: Send) -> None:
        finished = False

        async def sending(message: Message) -> None:
            nonlocal finished
            if message["type"] == "http.response.body":
                if sent := outlet.take():
                    await send({"type": "http.response.body", "body": _Sent(sent), "more_body": True})
                if not message.get("more_body", False):
                    finished = True
                    outlet.close()  # before the next request, which may be there already, has its turn
            await send(message)

        try:
            await app(scope, receive, Sending(sending, outlet))
        finally:
            if not finished:
                outlet.close()  # else the connection would stay open by it

    return outletted


class _Sent:
    """Stands for bytes of a body that were sent already: uvicorn asks how many, and writes it to its transport."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


class _Transport:
    """A connection's transport as uvicorn sees it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._write = transport.write

    def write(self, data: bytes | _Sent) -> None:
        """Write what was not sent yet."""
        if not isinstance(data, _Sent):
            self._write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Bounded(_Protocol):
    """Put before one of uvicorn's protocols."""

    limits: Limits
    limited: Callable[[str], None]
    _timer: Countdown | None = None
    _connection: asyncio.Transport
    _lost: asyncio.Event
    _received = 0

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connection = cast(asyncio.Transport, transport)
        self._lost = asyncio.Event()
        self._expect(self.limits.header_timeout)
        if len(self.connections) >= self.limits.connections:
            self.limited("connections")  # uvicorn answers with 503 itself
        self.app = self._bounded(self.app)

    @override
    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self.limits.header_size:  # httptools has no bound of its own
            self.limited("header_size")
            self._connection.abort()
        else:
            super().data_received(data)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        self._lost.set()

    def _bounded(self, app: ASGIApp) -> ASGIApp:
        async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
            self._stop_timer()
            self._received = 0
            finished = False

            async def sending(message: Message) -> None:
                nonlocal finished
                finished = message["type"] == "http.response.body" and not message.get("more_body", False)
                await send(message)
                if finished:
                    self._expect(self.config.timeout_keep_alive + self.limits.header_timeout)

            await app(scope, receive, sending)
            if not finished:
                await self._close(receive)

        return bounded

    async def _close(self, receive: Receive) -> None:
        """Returns when uvicorn knows that the connection is closed: then it says nothing about the answer."""
        self._connection.close()
        try:
            async with asyncio.timeout(LINGER):
                await self._lost.wait()
        except TimeoutError:
            self._connection.abort()
            await self._lost.wait()
        # Of an answer with another request behind it uvicorn never learns, and it does say something.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                while (await receive())["type"] != "http.disconnect":
                    pass

    def _expect(self, seconds: float) -> None:
        """A request, within so many seconds; none where the connection is lost."""
        self._stop_timer()
        if not self._lost.is_set():
            self._timer = Countdown(seconds, partial(self._too_late, seconds))

    def _too_late(self, seconds: float) -> None:
        if self._connection.get_write_buffer_size() > 0:  # a slow reader still takes the answer before
            self._expect(seconds)
        else:
            self.limited("header_timeout")
            self._connection.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
