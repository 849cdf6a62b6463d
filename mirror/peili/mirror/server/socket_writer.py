"""Writes the body of a response directly to the client's socket, not over ASGI.

Without TLS, the kernel can then move the bytes. With TLS, they are not copied before they are encrypted.

A socket writer is an attribute of the `send` callable that our own connections pass to the app. Middleware that wraps
`send` hides it, unless it calls `wrap_send`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress

from starlette.types import Message, Send
from typing_extensions import override

from peili.mirror.limits import MIB
from peili.mirror.server.tls_transport import TLS_PIECE, TlsServerTransport
from peili.mirror.support.deadlines import Countdown

PIECE = 8 * MIB
"""The most bytes that one system call moves. Other connections wait meanwhile: two milliseconds on loopback, and longer
if the file is not in memory. On a network, a call moves no more than the free space of the socket's buffer (usually at
most 4 MiB). Smaller pieces were slower, because sender and reader then compete for the lock of the socket. Measured for
1 GiB on loopback, relative to nginx: 1.01 with 8 MiB, 0.93 with 4 or 2 MiB, 0.81 with 1 MiB.
"""
_CLIENT_GONE = {
    errno.ENOTCONN,
    errno.EHOSTUNREACH,
    errno.EHOSTDOWN,
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.ENETRESET,
}
"""Errors that mean a lost connection, in addition to those of ConnectionError and TimeoutError."""


class SocketWriter(ABC):
    """Writes parts of a body directly to the client's socket, between the first and the last message of a response.

    Only one task may use it at a time. Body messages that were sent earlier are written first.

    The methods that send raise TimeoutError if the client reads nothing for too long, and OSError if the client has
    disconnected or this host fails (see `is_client_gone`). After an error or a cancellation it is unknown how much was
    sent, so that the response must be left unfinished.
    """

    @property
    def can_splice(self) -> bool:
        """Whether `sendfile` and `splice` are supported. Over TLS, they are not."""
        return True

    def prepare(self) -> bool:
        """Acquire what sending needs. Return whether that worked. If not, send the body in messages."""
        return True

    def abort(self) -> None:  # noqa: B027 - a writer without a connection has nothing to close
        """Close the connection at once, whatever is being written."""

    @abstractmethod
    def set_timeout(self, seconds: float) -> None:
        """Set for how many seconds the client may read nothing."""

    @abstractmethod
    async def sendfile(self, fd: int, offset: int, count: int) -> int:
        """Send bytes of a regular file. Only if `can_splice`.

        Args:
            fd: The descriptor of the file.
            offset: The first byte.
            count: The number of bytes.

        Returns:
            How many bytes were sent; fewer than `count` if the file ends earlier.
        """

    @abstractmethod
    async def send(self, data: bytes | memoryview) -> None:
        """Send all of `data`. The caller may overwrite it afterwards."""

    @abstractmethod
    async def splice(self, pipe: int, count: int) -> None:
        """Send bytes from a pipe. Linux only, and only if `can_splice`.

        Args:
            pipe: The read end of the pipe.
            count: The number of bytes. The pipe already contains them.
        """


def is_client_gone(error: OSError) -> bool:
    """Return whether an error of sending means that the client has disconnected or reads nothing.

    Otherwise this host failed. An error without an errno was raised by a server, and means a lost connection, too.
    """
    # The errno of an error of TLS is none of the system.
    is_lost = error.errno is None or isinstance(error, (ConnectionError, TimeoutError, ssl.SSLError))
    return is_lost or error.errno in _CLIENT_GONE


class SocketSend:
    """An ASGI `send` callable with a socket writer.

    Args:
        send: The callable for messages.
        socket_writer: The writer for the same response.
    """

    __slots__ = ("_send", "socket_writer")

    def __init__(self, send: Send, socket_writer: SocketWriter) -> None:
        self._send = send
        self.socket_writer = socket_writer

    async def __call__(self, message: Message) -> None:
        await self._send(message)


def get_socket_writer(send: Send) -> SocketWriter | None:
    """Return the socket writer of `send`; None behind middleware that wraps `send`, and on other servers."""
    return send.socket_writer if isinstance(send, SocketSend) else None


def wrap_send(send: Send, wrapper: Send) -> Send:
    """Return `wrapper` with the socket writer of `send`, if it has one.

    `wrapper` must pass on all messages to `send` and must not change the body.
    """
    return SocketSend(wrapper, send.socket_writer) if isinstance(send, SocketSend) else wrapper


class WrappedSocketWriter(SocketWriter):
    """The base of writers that do something more with each write to `writer`."""

    def __init__(self, writer: SocketWriter) -> None:
        self._writer = writer

    @property
    @override
    def can_splice(self) -> bool:
        return self._writer.can_splice

    @override
    def prepare(self) -> bool:
        return self._writer.prepare()

    @override
    def abort(self) -> None:
        self._writer.abort()

    @override
    def set_timeout(self, seconds: float) -> None:
        self._writer.set_timeout(seconds)


class CountingSocketWriter(WrappedSocketWriter):
    """Calls `count` with the number of bytes after each write to `writer`."""

    def __init__(self, writer: SocketWriter, count: Callable[[int], None]) -> None:
        super().__init__(writer)
        self._count = count

    @override
    async def sendfile(self, fd: int, offset: int, count: int) -> int:
        sent = await self._writer.sendfile(fd, offset, count)
        self._count(sent)
        return sent

    @override
    async def send(self, data: bytes | memoryview) -> None:
        await self._writer.send(data)
        self._count(len(data))

    @override
    async def splice(self, pipe: int, count: int) -> None:
        await self._writer.splice(pipe, count)
        self._count(count)


class DirectSocketWriter(SocketWriter):
    """Writes to the socket of a connection without TLS, for a transport of asyncio or uvloop.

    It works on a duplicate of the transport's file descriptor, because event loops do not let other code watch the
    descriptor of a transport. Call `close` at the end of each response, and `connection_lost` with the connection.

    Args:
        transport: The transport of the connection.
    """

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._timeout = 60.0
        self._transport = transport
        self._socket: socket.socket | None = None
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._countdown: Countdown | None = None
        self._sent_count = 0
        self._is_client_gone = False  # a write found that the client has disconnected
        self._is_lost = asyncio.Event()

    @override
    def prepare(self) -> bool:
        try:
            self._duplicate()
        except ConnectionError:
            return True  # the write raises it
        except OSError:
            return False
        return True

    @override
    def abort(self) -> None:
        if self._socket is not None:  # the duplicate would keep the connection open
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._transport.abort()

    @override
    def set_timeout(self, seconds: float) -> None:
        self._timeout = seconds

    def take_sent_count(self) -> int:
        """Return how many bytes were sent since the last call."""
        count, self._sent_count = self._sent_count, 0
        return count

    def close(self) -> None:
        """Close the duplicate of the socket. The next write makes a new one. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def close_lost_connection(self) -> None:
        """If a write found that the client has disconnected, close the connection and wait for `connection_lost`."""
        if self._is_client_gone:
            self._transport.abort()
            await self._is_lost.wait()

    def connection_lost(self) -> None:
        """Note that the connection is lost. A write in progress raises ConnectionResetError."""
        self._is_lost.set()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionResetError("the client has disconnected"))

    @override
    async def sendfile(self, fd: int, offset: int, count: int) -> int:
        return await self._send_all(
            count, lambda out, sent: os.sendfile(out.fileno(), fd, offset + sent, min(PIECE, count - sent))
        )

    @override
    async def send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        await self._send_all(len(view), lambda out, sent: out.send(view[sent : sent + PIECE]))

    @override
    async def splice(self, pipe: int, count: int) -> None:
        flags = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
        moved = await self._send_all(
            count, lambda out, sent: os.splice(pipe, out.fileno(), min(PIECE, count - sent), flags=flags)
        )
        if moved < count:
            raise ValueError(f"the pipe ended {count - moved} bytes too early")

    async def _send_all(self, count: int, send_piece: Callable[[socket.socket, int], int]) -> int:
        """Send `count` bytes, piece by piece. Return how many were sent: fewer if their source ends earlier.

        Args:
            count: The number of bytes.
            send_piece: Sends what the socket takes now. It gets the socket and the number of bytes sent so far. It
                returns how many it has sent: 0 at the end of the source. It raises BlockingIOError if the socket takes
                nothing.
        """
        sent = 0

        def step(out: socket.socket) -> bool:
            nonlocal sent
            piece = send_piece(out, sent)
            sent += piece
            self._sent_count += piece
            return sent == count or not piece

        if count:
            await self._write(step)
        return sent

    async def _write(self, step: Callable[[socket.socket], bool]) -> None:
        """Call `step` until it returns True: now, and then each time that the event loop finds the socket writable."""
        out = self._duplicate()
        done: asyncio.Future[None] = self._loop.create_future()

        def writable() -> None:
            if done.done() or self._transport.get_write_buffer_size() > 0:
                return  # the transport must write its buffer first, which it does soon: the socket is writable
            try:
                finished = step(out)
            except (BlockingIOError, InterruptedError):
                return
            except Exception as error:  # noqa: BLE001 - raised by the waiting task
                self._is_client_gone = isinstance(error, (ConnectionError, ssl.SSLError))
                done.set_exception(error)
                return
            if self._countdown is not None:
                self._countdown.restart()
            if finished:
                done.set_result(None)

        writable()
        if not done.done():
            self._waiter = done
            fd = out.fileno()
            self._loop.add_writer(fd, writable)
            try:
                await self._wait_in_time(done)
            finally:
                self._loop.remove_writer(fd)
                self._waiter = None
                if not done.cancel():
                    done.exception()  # marks it as retrieved, if it arrives while this task is cancelled
        done.result()

    async def _wait_in_time(self, done: asyncio.Future[None]) -> None:
        """Wait for `done`. If nothing is written for too long, `done` fails with TimeoutError.

        There is one countdown for all steps, because a timer for each step would cost too much.
        """

        def on_timeout() -> None:
            if not done.done():
                done.set_exception(TimeoutError("the client reads nothing"))

        self._countdown = Countdown(self._timeout, on_timeout)
        try:
            await asyncio.wait([done])
        finally:
            self._countdown.cancel()

    def _duplicate(self) -> socket.socket:
        if self._transport.is_closing():
            self._is_client_gone = True
            raise ConnectionResetError("the client has disconnected")
        if self._socket is None:
            connected: socket.socket = self._transport.get_extra_info("socket")
            duplicate = socket.fromfd(connected.fileno(), connected.family, connected.type)
            duplicate.setblocking(False)
            self._socket = duplicate
        return self._socket


class TlsSocketWriter(DirectSocketWriter):
    """Writes to a connection with TLS. OpenSSL encrypts each piece from the memory of the caller.

    Args:
        transport: The transport of the connection.
    """

    def __init__(self, transport: TlsServerTransport) -> None:
        super().__init__(transport)
        self._secured = transport.secured

    @property
    @override
    def can_splice(self) -> bool:
        return False

    @override
    async def sendfile(self, fd: int, offset: int, count: int) -> int:
        raise NotImplementedError

    @override
    async def send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)

        def send_piece(_: socket.socket, sent: int) -> int:
            stop = sent
            with suppress(ssl.SSLWantWriteError):
                while stop < len(view):
                    stop += self._secured.send(view[stop : stop + TLS_PIECE])
            if stop == sent:
                raise BlockingIOError
            return stop - sent

        await self._send_all(len(view), send_piece)

    @override
    async def splice(self, pipe: int, count: int) -> None:
        raise NotImplementedError
