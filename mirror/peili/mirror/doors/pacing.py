"""Bounds the bytes per second that a door sends, to each client and in total. Without a limit, nothing is paced."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override

from peili.mirror.limits import KIB, UNLIMITED, Limits
from peili.mirror.server.socket_writer import PIECE, SocketSend, SocketWriter, WrappedSocketWriter, get_socket_writer

_BURST = 0.1
"""Seconds of unused rate that may be made up for."""
_TURN = 0.05
"""Seconds at the full rate that one piece takes. All senders take turns, so that each gets its share."""
_MIN_PIECE = 16 * KIB
_MAX_CLIENTS = 1024
_PATHSEND = "http.response.pathsend"


class Rate:
    """Bounds a number of bytes per second. Used on one event loop.

    Args:
        bytes_per_second: The bound.
    """

    def __init__(self, bytes_per_second: float) -> None:
        self._bytes_per_second = bytes_per_second
        self._next = 0.0  # when the bytes that were granted so far have been sent at this rate

    def delay(self, count: int, now: float) -> float:
        """Grant `count` bytes, and return the seconds after which they may be sent."""
        start = max(self._next, now - _BURST)
        self._next = start + count / self._bytes_per_second
        return max(0.0, start - now)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A number of bytes per second that `Limits` bounds.

    Attributes:
        name: The name of the limit.
        bytes_per_second: Its value.
    """

    name: str
    bytes_per_second: int


class Pacer:
    """The rates of one door.

    Args:
        total: The limit of all clients together.
        per_client: The limit of each client.
        limited: Called with the name of a limit each time that it delays a piece.
    """

    def __init__(self, total: RateLimit, per_client: RateLimit | None, limited: Callable[[str], None]) -> None:
        self._limited = limited
        self._total_name, self._total = total.name, Rate(total.bytes_per_second)
        self._per_client = per_client or RateLimit(total.name, UNLIMITED)
        self._clients: OrderedDict[str, Rate] = OrderedDict()  # used last is last
        lowest = min(total.bytes_per_second, self._per_client.bytes_per_second)
        self.is_unlimited = lowest >= UNLIMITED
        self.piece = int(min(max(lowest * _TURN, _MIN_PIECE), PIECE))

    async def wait(self, client: str, count: int) -> None:
        """Wait until `count` bytes may be sent to `client`."""
        rate = self._clients.setdefault(client, Rate(self._per_client.bytes_per_second))
        self._clients.move_to_end(client)
        if len(self._clients) > _MAX_CLIENTS:
            self._clients.popitem(last=False)
        now = asyncio.get_running_loop().time()
        of_client, of_all = rate.delay(count, now), self._total.delay(count, now)
        if delay := max(of_client, of_all):
            self._limited(self._per_client.name if of_client > of_all else self._total_name)
            await asyncio.sleep(delay)


@dataclass(frozen=True, slots=True)
class DoorPacers:
    """The rates of both doors."""

    local: Pacer
    peer: Pacer


def door_pacers(limits: Limits, limited: Callable[[str], None]) -> DoorPacers:
    """Return the rates of both doors.

    Args:
        limits: ``local_rate``, ``upload_rate`` and ``upload_rate_per_peer`` count.
        limited: Called with the name of a limit each time that it takes effect.
    """
    return DoorPacers(
        Pacer(RateLimit("local_rate", limits.local_rate), None, limited),
        Pacer(
            RateLimit("upload_rate", limits.upload_rate),
            RateLimit("upload_rate_per_peer", limits.upload_rate_per_peer),
            limited,
        ),
    )


def paced(app: ASGIApp, pacer: Pacer) -> ASGIApp:
    """Return `app` with the rates of `pacer`; `app` itself if there is no limit."""
    return app if pacer.is_unlimited else Pacing(app, pacer)


class Pacing:
    """Delays the bytes of responses as a `Pacer` says.

    Args:
        app: The app that sends the responses.
        pacer: The rates.
    """

    def __init__(self, app: ASGIApp, pacer: Pacer) -> None:
        self._app = app
        self._pacer = pacer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = (scope.get("client") or ("",))[0]

        async def paced_send(message: Message) -> None:
            body: bytes = message.get("body", b"") if message["type"] == "http.response.body" else b""
            if body:
                await self._pacer.wait(client, len(body))
            await send(message)

        if scope["type"] == "http" and _PATHSEND in (scope.get("extensions") or ()):  # the server would not be paced
            scope = {**scope, "extensions": {k: v for k, v in scope["extensions"].items() if k != _PATHSEND}}
        writer = get_socket_writer(send)
        paced = paced_send if writer is None else SocketSend(paced_send, PacedSocketWriter(writer, self._pacer, client))
        await self._app(scope, receive, paced)


class PacedSocketWriter(WrappedSocketWriter):
    """Sends pieces to `client`, each as soon as `pacer` allows it."""

    def __init__(self, writer: SocketWriter, pacer: Pacer, client: str) -> None:
        super().__init__(writer)
        self._pacer = pacer
        self._client = client

    @override
    async def sendfile(self, fd: int, offset: int, count: int) -> int:
        sent = 0
        while sent < count:
            size = min(self._pacer.piece, count - sent)
            await self._pacer.wait(self._client, size)
            done = await self._writer.sendfile(fd, offset + sent, size)
            sent += done
            if done < size:
                break
        return sent

    @override
    async def send(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            piece, rest = rest[: self._pacer.piece], rest[self._pacer.piece :]
            await self._pacer.wait(self._client, len(piece))
            await self._writer.send(piece)

    @override
    async def splice(self, pipe: int, count: int) -> None:
        rest = count
        while rest:
            size = min(self._pacer.piece, rest)
            await self._pacer.wait(self._client, size)
            await self._writer.splice(pipe, size)
            rest -= size
