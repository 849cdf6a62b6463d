"""What uvicorn's connections lack: an end for requests that never become whole, and for answers left unfinished.

A door leaves an answer unfinished on purpose: its content is cut off, its reader takes nothing, or the mirror drains.
uvicorn would report that as an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override

LINGER = 1.0
"""Seconds for which a reader may still take what was sent before its connection was closed."""


def bound_connections(config: uvicorn.Config, header_timeout: float, late: Callable[[], None]) -> None:
    """Let connections of `config`, which is loaded, end where they should.

    A request's head has to be whole `header_timeout` seconds after the connection was made, or the time to keep it
    idle is over; `late` is called for each that is ended for it.
    """
    bases = (_Bounded, config.http_protocol_class)
    config.http_protocol_class = type(
        "BoundedProtocol", bases, {"header_timeout": header_timeout, "late": staticmethod(late)}
    )


class _Bounded(asyncio.Protocol):
    """Put before one of uvicorn's protocols, of whose names it needs `app` and `config` only."""

    app: ASGIApp
    config: uvicorn.Config
    header_timeout: float
    late: Callable[[], None]
    _timer: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if isinstance(transport, asyncio.WriteTransport):
            self._expect(transport, self.header_timeout)
            self.app = self._bounded(self.app, transport)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _bounded(self, app: ASGIApp, transport: asyncio.WriteTransport) -> ASGIApp:
        async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
            self._stop_timer()
            finished = False

            async def sending(message: Message) -> None:
                nonlocal finished
                finished = message["type"] == "http.response.body" and not message.get("more_body", False)
                await send(message)
                if finished:
                    self._expect(transport, self.config.timeout_keep_alive + self.header_timeout)

            await app(scope, receive, sending)
            if not finished:
                await _close(transport, receive)

        return bounded

    def _expect(self, transport: asyncio.WriteTransport, seconds: float) -> None:
        """A request, within so many seconds."""
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._too_late, transport, seconds)

    def _too_late(self, transport: asyncio.WriteTransport, seconds: float) -> None:
        if transport.get_write_buffer_size() > 0:  # a slow reader still takes the answer before
            self._expect(transport, seconds)
        else:
            self.late()
            transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def _close(transport: asyncio.WriteTransport, receive: Receive) -> None:
    """Returns when uvicorn knows that the connection is closed: then it says nothing about the answer."""
    transport.close()
    try:
        async with asyncio.timeout(LINGER):
            await _disconnected(receive)
    except TimeoutError:
        transport.abort()
        await _disconnected(receive)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
