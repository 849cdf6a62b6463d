"""What uvicorn's connections lack: a way past ASGI for bodies, an end for requests that never become whole, one for
answers left unfinished, and a bound on requests that wait for an answer.

A door leaves an answer unfinished on purpose: its content is cut off, its reader takes nothing, or the mirror drains.
uvicorn would report that as an error.
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

LINGER = 1.0
"""Seconds for which a reader may still take what was sent before its connection was closed."""

_PIECE = 4 * KIB
"""Bytes of a body that are parsed at once …"""
_HEAD_PIECE = KIB
"""… and of a head."""
_HEAD_END = b"\r\n\r\n"
_ANOTHER = re.compile(rb"\r\n\r\n[A-Z-]{3,20} ")
"""Where a request begins behind another one. It may be in a body as well, which nobody sends who does not wait."""


def http_protocol() -> type[asyncio.Protocol]:
    """For hosts that run uvicorn themselves: ``uvicorn.Config(app, http=http_protocol())``.

    Doors that such a server runs without anything around them that wraps `send` let the kernel move their bytes. A
    connection is closed when more requests wait on it than the defaults of ``limits.pipeline`` and
    ``limits.pipeline_size`` allow, or a head is longer than that of ``limits.header_size``. A request that has not
    exactly one Host, or a malformed one, is answered with 400. Everything else is as in uvicorn's own protocol.
    """
    return _with_outlets(_with_bounds(AutoHTTPProtocol, Limits(), lambda _: None))


def bound_connections(
    config: uvicorn.Config, limits: Limits, limited: Callable[[str], None]
) -> Callable[[ConnectionSlot, ServerState, dict[str, Any]], asyncio.Protocol]:
    """What makes the protocols of `config`, which is loaded: they have outlets, and end where they should.

    A request's head has to be whole ``limits.header_timeout`` seconds after the connection was made, or the time to
    keep it idle is over; and within ``limits.header_size`` bytes. No more requests wait on one connection than
    ``limits.pipeline`` and ``limits.pipeline_size`` allow. `limited` hears of each connection that is ended for it.
    """
    config.h11_max_incomplete_event_size = limits.header_size  # where httptools is not installed
    bases = (_Bounded, _with_outlets(_with_bounds(config.http_protocol_class, limits, limited)))
    protocol: Any = type("BoundedProtocol", bases, {"limits": limits, "limited": staticmethod(limited)})

    def make(slot: ConnectionSlot, state: ServerState, app_state: dict[str, Any]) -> asyncio.Protocol:
        made: _Bounded = protocol(config, state, app_state)
        made.slot = slot
        return made

    return make


def _with_bounds(
    protocol: type[asyncio.Protocol], limits: Limits, limited: Callable[[str], None]
) -> type[asyncio.Protocol]:
    """Only the protocol on httptools lacks them: h11 reads one request at a time, and bounds its head."""
    if not issubclass(protocol, HttpToolsProtocol):
        return protocol
    return type("RequestsProtocol", (_Requests, protocol), {"limits": limits, "limited": staticmethod(limited)})


def _with_outlets(protocol: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """Only the protocol on httptools hands a body to its transport as it came; others put it together anew."""
    if sys.platform != "linux" or not issubclass(protocol, HttpToolsProtocol):
        return protocol
    return type("OutletProtocol", (_Outlets, protocol), {})


class _Protocol(asyncio.Protocol):
    """The names of uvicorn's protocols that are needed here."""

    app: ASGIApp
    config: uvicorn.Config


class _Cycle(Protocol):
    """A request and its answer, in uvicorn's protocol on httptools."""

    more_body: bool
    response_complete: bool
    disconnected: bool
    message_event: asyncio.Event


class _HttpTools(_Protocol):
    """More names, which only uvicorn's protocol on httptools has."""

    transport: asyncio.Transport
    pipeline: deque[tuple[_Cycle, ASGIApp]]
    url: bytes
    headers: list[tuple[bytes, bytes]]

    def on_message_begin(self) -> None:
        """The parser's call."""
        super().on_message_begin()  # type: ignore[misc]  # pyright: ignore

    def on_headers_complete(self) -> None:
        """The parser's call."""
        super().on_headers_complete()  # type: ignore[misc]  # pyright: ignore

    def on_message_complete(self) -> None:
        """The parser's call."""
        super().on_message_complete()  # type: ignore[misc]  # pyright: ignore

    def on_response_complete(self) -> None:
        """An answer has been given to the transport."""
        super().on_response_complete()  # type: ignore[misc]  # pyright: ignore

    def _start_asgi_task(self, cycle: _Cycle, app: ASGIApp) -> None:
        super()._start_asgi_task(cycle, app)  # type: ignore[misc]  # pyright: ignore


class _Requests(_HttpTools):
    """Bounds what one connection asks: the size of a head, and the requests that wait behind another one. Refuses
    requests without a proper Host.

    uvicorn makes an object of some kilobytes of each request, and goes on reading as soon as an app waits for the end
    of its connection. So what comes behind a request that is being answered is parsed only when that has been done.
    Bytes are parsed in pieces, as a rule one head at a time, and the bounds are looked at after each.
    """

    limits: Limits
    limited: Callable[[str], None]
    _running: _Cycle | None = None
    _waiting = b""
    """What is not parsed yet."""
    _in_body = False
    _head: int | None = None
    """Bytes of the head that is not whole yet, without those of the piece in which it begins."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.app = HostHeaderCheck(self.app)

    @override
    def data_received(self, data: bytes) -> None:
        self._waiting = self._waiting + data if self._waiting else data
        self._go_on()

    def _go_on(self) -> None:
        """Parse what may be parsed now."""
        data, self._waiting, start = self._waiting, b"", 0
        while start < len(data) and not self._is_answering():
            end = self._end(data, start)
            self._parse(data[start:end] if end - start < len(data) else data)
            start = end
            if self.transport.is_closing():
                return
        self._waiting = data[start:]
        if (exceeded := self._exceeded()) is not None:
            self._end_for(exceeded)

    def _is_answering(self) -> bool:
        """Whether a request that has come whole is being answered."""
        cycle = self._running
        return cycle is not None and not (cycle.response_complete or cycle.more_body)

    def _end(self, data: bytes, start: int) -> int:
        """Up to where `data` is parsed next."""
        if self._in_body:
            return min(start + _PIECE, len(data))
        found = data.find(_HEAD_END, start, start + _HEAD_PIECE)
        return found + len(_HEAD_END) if found >= 0 else min(start + _HEAD_PIECE, len(data))

    def _parse(self, piece: bytes) -> None:
        before, self._began = self._head, False
        super().data_received(piece)
        if before is not None and self._head is not None and not self._began:
            self._head += len(piece)
        if self._head is not None and max(self._head, _size(self.url, self.headers)) > self.limits.header_size:
            self._end_for("header_size")
        elif len(self.pipeline) > self.limits.pipeline:
            self._end_for("pipeline")

    def _end_for(self, limit: str) -> None:
        """This connection does not keep to `limit`."""
        self.limited(limit)
        self.transport.abort()

    def _exceeded(self) -> str | None:
        """The limit that requests which wait for an answer do not keep."""
        if not self._waiting:
            return None
        if len(self.pipeline) + len(_ANOTHER.findall(self._waiting)) >= self.limits.pipeline:
            return "pipeline"
        return "pipeline_size" if len(self._waiting) > self.limits.pipeline_size else None

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.pipeline.clear()
        self._waiting = b""
        if self._running is not None:  # uvicorn only tells the request that came last
            self._running.disconnected = True
            self._running.message_event.set()
            self._running = None

    @override
    def on_message_begin(self) -> None:
        self._head, self._began = 0, True
        super().on_message_begin()

    @override
    def on_headers_complete(self) -> None:
        if _size(self.url, self.headers) > self.limits.header_size:
            return  # no request: `_parse` sees that its head never ended
        self._head = None
        self._in_body = True
        super().on_headers_complete()

    @override
    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._waiting and not self.transport.is_closing():
            self._go_on()

    @override
    def _start_asgi_task(self, cycle: _Cycle, app: ASGIApp) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)


def _size(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    """Bytes of a request's head, nearly."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


class _Outlets(_Protocol):
    """Gives an app an socket_writer, and tells uvicorn, which counts the bytes of a body, of those that went by it."""

    _outlet: DirectSocketWriter | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if transport.get_extra_info("sslcontext") is not None:
            super().connection_made(transport)
            return
        # uvloop's transports are none of asyncio's classes; they only have the same methods.
        plain = cast(asyncio.Transport, transport)
        super().connection_made(cast(asyncio.Transport, _Transport(plain)))
        self._outlet = DirectSocketWriter(plain)
        self.app = _with_outlet(self.app, self._outlet)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._outlet is not None:
            self._outlet.lose()
        super().connection_lost(exc)


def _with_outlet(app: ASGIApp, socket_writer: DirectSocketWriter) -> ASGIApp:
    async def outletted(scope: Scope, receive: Receive, send: Send) -> None:
        finished = False

        async def sending(message: Message) -> None:
            nonlocal finished
            if message["type"] == "http.response.body":
                if sent := socket_writer.take():
                    await send({"type": "http.response.body", "body": _Sent(sent), "more_body": True})
                if not message.get("more_body", False):
                    finished = True
                    socket_writer.close()  # before the next request, which may be there already, has its turn
            await send(message)

        try:
            await app(scope, receive, SocketSend(sending, socket_writer))
        finally:
            if not finished:
                socket_writer.close()  # else the connection would stay open by it
        if not finished:
            await socket_writer.end()  # uvicorn, which has yet to see that, would report the answer as unfinished

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


async def _nobody(scope: Scope, receive: Receive, send: Send) -> None:
    """The app of a connection that is lost: it is not called."""


class _Bounded(_Protocol):
    """Put before one of uvicorn's protocols."""

    limits: Limits
    limited: Callable[[str], None]
    slot: ConnectionSlot
    _timer: Countdown | None = None
    _connection: asyncio.Transport
    _lost: asyncio.Event

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connection = cast(asyncio.Transport, transport)
        self._lost = asyncio.Event()
        self.slot.transport = self._connection
        self._expect(self.limits.header_timeout)
        self.app = self._bounded(self.app)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.slot.leave()
        super().connection_lost(exc)
        self.app = _nobody  # what was around it holds this: it would stay for the garbage collector
        self._lost.set()

    def _bounded(self, app: ASGIApp) -> ASGIApp:
        async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
            self._stop_timer()
            self.slot.work()
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
            self.slot.wait()
            self._timer = Countdown(seconds, partial(self._too_late, seconds))

    def _too_late(self, seconds: float) -> None:
        if self._connection.get_write_buffer_size() > 0:  # a slow reader still takes the answer before
            self._expect(seconds)
        else:
            self.limited("header_timeout")
            self.slot.end_in_turn()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


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
