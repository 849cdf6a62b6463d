"""Moves bytes to and from a peer over TCP or TLS, into the caller's buffers or a pipe. HTTP is in connection.py."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from typing_extensions import override

from peili.mirror.tls.identities import certificate_names

_CAN_SPLICE = sys.platform == "linux"
_TLS_READ = 64 << 10
"""The bytes to read at least, if they have arrived: four whole records (RFC 8446, section 5.2)."""
_TLS_READ_MOST = 128 << 10
"""The bytes to read at most. Each connection keeps memory for as many."""
_TLS_WRITE = 256 << 10
"""The bytes that are encrypted at a time, so that a large body is not in memory twice."""


class Transport(ABC):
    """An open connection. Its owner closes it. Only one task reads at a time. All methods raise OSError if it fails.

    Args:
        connected: A socket that is connected and does not block.

    Attributes:
        identity: The id of the peer that its verified certificate shows; None if it shows none.
        tls: The context of the connection; None without TLS.
    """

    identity: str | None = None
    tls: ssl.SSLContext | None = None

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Send all of `data`."""

    @abstractmethod
    async def recv_into(self, buffer: memoryview) -> int:
        """Wait for bytes and read them. Return their number; 0 if the peer has ended the stream."""

    def recv_nowait(self, buffer: memoryview) -> int:
        """Read the bytes that have arrived already. Return their number; 0 if there are none or it is not known."""
        return 0

    async def recv_pipe(self, pipe: int, count: int) -> int:
        """Wait for bytes and move up to `count` of them into a pipe, which must have room. Only if `can_splice`.

        Returns:
            The number of bytes; 0 if the peer has ended the stream.
        """
        raise NotImplementedError

    @property
    def can_splice(self) -> bool:
        """Whether `recv_pipe` is supported."""
        return False

    def acknowledge(self) -> None:
        """Acknowledge what has arrived, now and not up to 40 ms later.

        A server that sends the head and the body of a response separately may wait for that before it sends the body
        (Nagle's algorithm, which asyncio does not switch off on a listener that the application made).
        """
        if sys.platform == "linux":
            with suppress(OSError):  # the connection has ended; the next read says so
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    @abstractmethod
    def is_quiet(self) -> bool:
        """Return whether the stream is open and there are no unread bytes."""

    def interrupt(self) -> None:
        """End the stream. A task that reads is woken and fails, or reads no more bytes."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close at once. No task may be reading. Idempotent."""
        self._socket.close()


class TcpTransport(Transport):
    """TCP on a non-blocking socket."""

    @override
    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._socket, data)

    @override
    async def recv_into(self, buffer: memoryview) -> int:
        return await self._loop.sock_recv_into(self._socket, buffer)

    @override
    def recv_nowait(self, buffer: memoryview) -> int:
        try:
            return self._socket.recv_into(buffer)
        except OSError:  # nothing has arrived; the next `recv_into` raises a lasting error
            return 0

    @property
    @override
    def can_splice(self) -> bool:
        return _CAN_SPLICE

    @override
    async def recv_pipe(self, pipe: int, count: int) -> int:
        while True:
            with suppress(BlockingIOError, InterruptedError):
                flags = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
                return os.splice(self._socket.fileno(), pipe, count, flags=flags)
            await self._wait_readable()

    async def _wait_readable(self) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()

        def set_ready() -> None:
            if not ready.done():
                ready.set_result(None)

        self._loop.add_reader(self._socket.fileno(), set_ready)
        try:
            await ready
        finally:
            self._loop.remove_reader(self._socket.fileno())

    @override
    def is_quiet(self) -> bool:
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


class TlsTransport(Transport):
    """TLS over a non-blocking socket.

    OpenSSL gets what has arrived in large pieces, from memory: on a socket it would read each record of 16 KiB with two
    system calls. It decrypts into the caller's buffer; asyncio's streams would copy once more.
    """

    def __init__(self, tcp_socket: socket.socket, tls: ssl.SSLContext, name: str) -> None:
        super().__init__(tcp_socket)
        self.tls = tls
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._secured = tls.wrap_bio(self._received, self._to_send, server_hostname=name)
        self._read = cast("Callable[[int, memoryview], int]", self._secured.read)  # typeshed knows only bytearray
        self._has_ended = False  # OpenSSL has seen the end of the stream
        self._error: ssl.SSLError | None = None  # a wrong record, or an alert: OpenSSL raises it only once

    @classmethod
    async def start(cls, tcp_socket: socket.socket, tls: ssl.SSLContext, name: str) -> TlsTransport:
        """Start TLS on a connected socket. The certificate of the peer must show `name`.

        Raises:
            OSError: The handshake failed. The socket is closed then.
        """
        try:
            transport = cls(tcp_socket, tls, name)
            while not await transport._shake_hands():
                transport._take(await transport._loop.sock_recv(tcp_socket, _TLS_READ))
        except BaseException:
            tcp_socket.close()
            raise
        return transport

    async def _shake_hands(self) -> bool:
        """Go on with the handshake. Returns whether it has ended; otherwise it needs more bytes."""
        try:
            self._secured.do_handshake()
        except ssl.SSLWantReadError:
            await self._flush()
            return False
        except ssl.SSLError:
            with suppress(OSError):  # what is wrong counts, and not that the peer can't be told
                await self._flush()
            raise
        await self._flush()
        return True

    def certificate_names(self) -> frozenset[str]:
        """Return the names in the verified certificate of the peer."""
        return certificate_names(self._secured.getpeercert())

    @override
    async def send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._secured.write(left[:_TLS_WRITE]) :]
            await self._flush()

    @override
    async def recv_into(self, buffer: memoryview) -> int:
        while True:
            count = self._decrypt_into(buffer)
            if self._to_send.pending:  # the peer has asked for a new key, or has sent something wrong
                with suppress(ConnectionError):  # what it sent before it closed the connection counts
                    await self._flush()
            if count is not None:
                return count
            if len(buffer) < _TLS_READ:
                self._take(await self._loop.sock_recv(self._socket, _TLS_READ))
            else:  # the buffer has room for what is encrypted, and then for what is decrypted
                self._take(buffer[: await self._loop.sock_recv_into(self._socket, buffer[:_TLS_READ_MOST])])

    @override
    def recv_nowait(self, buffer: memoryview) -> int:
        try:
            if len(buffer) >= _TLS_READ:
                self._take(buffer[: self._socket.recv_into(buffer[:_TLS_READ_MOST])])
            return self._decrypt_into(buffer) or 0
        except OSError:  # nothing has arrived; the next `recv_into` raises what is wrong
            return 0

    def _decrypt_into(self, buffer: memoryview) -> int | None:
        """Decrypt the records that have arrived.

        Returns:
            The number of bytes; 0 if the peer has ended the stream, and None if no whole record has arrived.

        Raises:
            OSError: A record is wrong. The bytes before it are returned first. Then each call raises it.
        """
        if self._error is not None:
            raise self._error
        if self._has_ended:
            return 0
        count, size, read = 0, len(buffer), self._read  # each turn of the loop decrypts only one record
        try:
            while count < size:
                more = read(size, buffer[count:])
                if not more:
                    self._has_ended = True
                    break
                count += more
        except ssl.SSLWantReadError:
            return count or None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # the length of a response shows whether its end is missing
            self._has_ended = True
        except ssl.SSLError as error:
            self._error = error
            if not count:
                raise
        return count

    def _take(self, received: bytes | memoryview) -> None:
        """Give OpenSSL what has arrived; nothing at the end of the stream."""
        if received:
            self._received.write(received)
        else:
            self._received.write_eof()

    async def _flush(self) -> None:
        if self._to_send.pending:
            await self._loop.sock_sendall(self._socket, self._to_send.read())

    @override
    def is_quiet(self) -> bool:
        if self._has_ended or self._error is not None or self._secured.pending() or self._received.pending:
            return False
        if self._socket.fileno() < 0 or self._received.eof:
            return False
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return not poll.poll(0)
