"""The way to a client's socket past ASGI, by which the kernel moves a body's bytes. Who may use it is decided by who
holds it: it hangs on the `send` that our own connections hand to the app, so that whatever wraps `send` has lost it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable

from starlette.types import Message, Send
from typing_extensions import override

from peili.mirror.limits import MIB
from peili.mirror.support.deadlines import Countdown

PIECE = 8 * MIB
"""Bytes that one system call moves at most. Other connections wait for it: two milliseconds on loopback, and more where
the file is not in memory; on a network it moves no more than what is free in the socket's buffer (4 MiB at most, as
systems are set up). Smaller ones were slower (serving 1 GiB on loopback, in turns with nginx, which is 1: 1.01 with
8 MiB, 0.93 with 4 or 2, 0.81 with 1): sender and reader then fight for the socket's lock.
"""


_LOST = {errno.ENOTCONN, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET}
"""What a socket's connection may end with, besides what ConnectionError and TimeoutError stand for."""


class SocketWriter(ABC):
    """Writes parts of a body straight to the client's socket, between the start of an answer and its last message.

    One task at a time; what was sent as body messages before goes first. Raises TimeoutError where the client
    takes nothing for too long, and OSError where it is gone or this host fails: `is_client_gone` tells which. After an
    error, or when cancelled, how much was sent is not known: the answer can only be left unfinished.
    """

    def prepare(self) -> bool:
        """Have in hand what sending takes; False where this host does not have it: the body goes by messages then."""
        return True

    @abstractmethod
    def set_timeout(self, seconds: float) -> None:
        """So long, from now on, is too long."""

    @abstractmethod
    async def sendfile(self, fd: int, offset: int, count: int) -> int:
        """Send `count` bytes of a regular file, from `offset` on; how many there were: fewer where it ends before."""

    @abstractmethod
    async def send(self, data: bytes | memoryview) -> None:
        """Send all of `data`, which may be overwritten once this returns."""

    @abstractmethod
    async def splice(self, pipe: int, count: int) -> None:
        """Send `count` bytes that are in a pipe already; `pipe` is the end to read from. Linux only."""


def is_client_gone(error: OSError) -> bool:
    """Whether `error`, raised in sending, says that the client is gone or takes nothing. Else it is this host's own.

    What a server raises of its own accord has no number.
    """
    return error.errno is None or isinstance(error, (ConnectionError, TimeoutError)) or error.errno in _LOST


class SocketSend:
    """A `send` with an socket_writer."""

    __slots__ = ("_send", "socket_writer")

    def __init__(self, send: Send, socket_writer: SocketWriter) -> None:
        self._send = send
        self.socket_writer = socket_writer

    async def __call__(self, message: Message) -> None:
        await self._send(message)


def get_socket_writer(send: Send) -> SocketWriter | None:
    """The socket_writer that belongs to `send`; None behind a middleware that wraps it, and on other servers."""
    return send.socket_writer if isinstance(send, SocketSend) else None


def wrap_send(send: Send, wrapping: Send) -> Send:
    """`wrapping`, which passes messages on to `send` and leaves the body as it is, with the same socket_writer."""
    return SocketSend(wrapping, send.socket_writer) if isinstance(send, SocketSend) else wrapping


class CountingSocketWriter(SocketWriter):
    """`socket_writer`, of whose bytes `count` hears as they are sent."""

    def __init__(self, socket_writer: SocketWriter, count: Callable[[int], None]) -> None:
        self._outlet = socket_writer
        self._count = count

    @override
    def prepare(self) -> bool:
        return self._outlet.prepare()

    @override
    def set_timeout(self, seconds: float) -> None:
        self._outlet.set_timeout(seconds)

    @override
    async def sendfile(self, fd: int, offset: int, count: int) -> int:
        sent = await self._outlet.sendfile(fd, offset, count)
        self._count(sent)
        return sent

    @override
    async def send(self, data: bytes | memoryview) -> None:
        await self._outlet.send(data)
        self._count(len(data))

    @override
    async def splice(self, pipe: int, count: int) -> None:
        await self._outlet.splice(pipe, count)
        self._count(count)


class DirectSocketWriter(SocketWriter):
    """The socket_writer of a connection that an asyncio or uvloop `transport` without TLS holds.

    It works on a duplicate of the transport's descriptor, since loops let nobody else wait for a transport's own.
    `take` says how many bytes went by it; `close` it when the answer has ended, and `lose` it with the connection.
    """

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._patience = 60.0
        self._transport = transport
        self._socket: socket.socket | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None
        self._countdown: Countdown | None = None
        self._sent = 0
        self._gone = False  # whether sending has found that there is no client any more
        self._lost = asyncio.Event()

    @override
    def prepare(self) -> bool:
        try:
            self._open()
        except ConnectionError:
            return True  # whoever sends is told
        except OSError:
            return False
        return True

    @override
    def set_timeout(self, seconds: float) -> None:
        self._patience = seconds

    def take(self) -> int:
        """How many bytes were sent since this was asked for last."""
        sent, self._sent = self._sent, 0
        return sent

    def close(self) -> None:
        """Free the descriptor; sending once more would make another one. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def end(self) -> None:
        """Where the client was found to be gone, close the connection; returns once `lose` was called for it."""
        if self._gone:
            self._transport.abort()
            await self._lost.wait()

    def lose(self) -> None:
        """The connection is gone: whoever sends is told."""
        self._lost.set()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionResetError("the client is gone"))

    @override
    async def sendfile(self, fd: int, offset: int, count: int) -> int:
        begin, end = offset, offset + count

        def step(out: socket.socket) -> bool:
            nonlocal offset
            sent = os.sendfile(out.fileno(), fd, offset, min(PIECE, end - offset))
            offset += sent
            self._sent += sent
            return offset == end or not sent

        if count:
            await self._whenever_writable(step)
        return offset - begin

    @override
    async def send(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)

        def step(out: socket.socket) -> bool:
            nonlocal rest
            sent = out.send(rest[:PIECE])
            self._sent += sent
            rest = rest[sent:]
            return not rest

        if rest:
            await self._whenever_writable(step)

    @override
    async def splice(self, pipe: int, count: int) -> None:
        rest = count

        def step(out: socket.socket) -> bool:
            nonlocal rest
            sent = os.splice(pipe, out.fileno(), min(PIECE, rest), flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
            if not sent:
                raise ValueError(f"the pipe ended {rest} bytes too early")
            self._sent += sent
            rest -= sent
            return not rest

        if rest:
            await self._whenever_writable(step)

    async def _whenever_writable(self, step: Callable[[socket.socket], bool]) -> None:
        """Call `step` when the socket takes bytes, until it is done; other connections have their turns in between."""
        out = self._open()
        done: asyncio.Future[None] = self._loop.create_future()

        def writable() -> None:
            if done.done() or self._transport.get_write_buffer_size() > 0:
                return  # what the transport was given before goes first; as the socket is writable, that is soon
            try:
                finished = step(out)
            except (BlockingIOError, InterruptedError):
                return
            except Exception as error:  # noqa: BLE001 - whoever waits is told
                self._gone = isinstance(error, ConnectionError)
                done.set_exception(error)
                return
            if self._countdown is not None:
                self._countdown.restart()
            if finished:
                done.set_result(None)

        writable()
        if not done.done():
            self._waiting = done
            fd = out.fileno()
            self._loop.add_writer(fd, writable)
            try:
                await self._in_time(done)
            finally:
                self._loop.remove_writer(fd)
                self._waiting = None
                if not done.cancel():
                    done.exception()  # may come while whoever waits is cancelled: nobody else is told
        done.result()

    async def _in_time(self, done: asyncio.Future[None]) -> None:
        """Wait for `done`. Where nothing moves, it gets a TimeoutError; costs no timer for each step."""

        def too_long() -> None:
            if not done.done():
                done.set_exception(TimeoutError("the client takes nothing"))

        self._countdown = Countdown(self._patience, too_long)
        try:
            await asyncio.wait([done])
        finally:
            self._countdown.cancel()

    def _open(self) -> socket.socket:
        if self._transport.is_closing():
            self._gone = True
            raise ConnectionResetError("the client is gone")
        if self._socket is None:
            duplicate: socket.socket = self._transport.get_extra_info("socket").dup()
            duplicate.setblocking(False)
            self._socket = duplicate
        return self._socket
