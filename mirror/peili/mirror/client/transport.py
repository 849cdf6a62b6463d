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
from dataclasses import dataclass, field
from typing import cast

from typing_extensions import override

from peili.mirror.client.dns import Addresses, AddressResolver, SocketAddress
from peili.mirror.peer_api.addresses import AddressKinds
from peili.mirror.support.deadlines import Deadline
from peili.mirror.tls.identities import certificate_names
from peili.mirror.tls.peer_tls import PeerTLS

_CAN_SPLICE = sys.platform == "linux"
_TLS_READ = 64 << 10
"""The bytes to read at least, if they have arrived: four whole records (RFC 8446, section 5.2)."""
_TLS_READ_MOST = 128 << 10
"""The bytes to read at most. Each connection keeps memory for as many."""
_TLS_WRITE = 256 << 10
"""The bytes that are encrypted at a time, so that a large body is not in memory twice."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where to connect to: the part of a URL before its path.

    Attributes:
        is_secure: Whether to use TLS.
        tls_name: The name that the certificate must show. If it is empty, only `PeerTLS.check_server` checks the names.
        dialled: The kinds of addresses that may be dialled.
    """

    is_secure: bool
    host: str
    port: int
    tls_name: str
    dialled: AddressKinds = field(default=AddressKinds.ANY, hash=False)  # the hash of an enum is slow


class Transport(ABC):
    """An open connection. Its owner closes it. Only one task reads at a time. All methods raise OSError if it fails.

    Attributes:
        identity: The id of the peer that its verified certificate shows; None if it shows none.
        tls: The context of the connection; None without TLS.
    """

    identity: str | None = None
    tls: ssl.SSLContext | None = None

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

    @abstractmethod
    def acknowledge(self) -> None:
        """Acknowledge what has arrived, now and not up to 40 ms later.

        A server that sends the head and the body of a response separately may wait for that before it sends the body
        (Nagle's algorithm, which asyncio does not switch off on a listener that the application made).
        """

    @abstractmethod
    def is_quiet(self) -> bool:
        """Return whether the stream is open and there are no unread bytes."""

    @abstractmethod
    def interrupt(self) -> None:
        """End the stream. A task that reads is woken and fails, or reads no more bytes."""

    @abstractmethod
    def close(self) -> None:
        """Close at once. No task may be reading. Idempotent."""


async def connect(
    origin: Origin, tls: ssl.SSLContext | PeerTLS | None, timeout: float, resolver: AddressResolver
) -> Transport:
    """Connect to `origin`, over TLS if `tls` is given.

    Args:
        origin: Where to connect to.
        tls: The TLS context, or the mutual TLS, whose checks are made too.
        timeout: Seconds for the lookup of the host name, the connection and the TLS handshake together.
        resolver: Looks up the host name.

    Raises:
        OSError: The connection or the TLS handshake failed. TimeoutError is one.
        UnicodeError: The host of `origin` is not a host name.
    """
    async with Deadline(timeout):
        addresses = _allowed(origin, await resolver.addresses(origin.host, origin.port))
        tcp_socket = await _connect_any(addresses, timeout)
        if tls is None:
            return TcpTransport(tcp_socket)
        try:
            context = tls.contexts().client if isinstance(tls, PeerTLS) else tls
            transport = await TlsTransport.start(tcp_socket, context, origin.tls_name or origin.host)
        except BaseException:
            tcp_socket.close()
            raise
        try:
            if isinstance(tls, PeerTLS):
                names = transport.certificate_names()
                tls.check_server(names, origin.tls_name)
                transport.identity = tls.identity_of(names)
        except BaseException:
            transport.close()
            raise
        return transport


def _allowed(origin: Origin, addresses: Addresses) -> Addresses:
    """Return those of `addresses` that may be dialled. Raises OSError if there are none."""
    if origin.dialled is AddressKinds.ANY:
        return addresses
    allowed = [each for each in addresses if AddressKinds.of(str(each[1][0])) & origin.dialled]
    if addresses and not allowed:
        raise OSError(f"{addresses[0][1][0]} is not dialled, because it is not an address of another host")
    return allowed


async def _connect_any(addresses: Addresses, timeout: float) -> socket.socket:
    """Return a socket that is connected to the first of `addresses` that accepts. Each has its share of `timeout`."""
    problem: OSError = OSError("the host has no address")
    for family, address in addresses:
        try:
            async with Deadline(timeout / len(addresses)):
                return await _connect(family, address)
        except OSError as error:
            problem = error
    raise problem


async def _connect(family: int, address: SocketAddress) -> socket.socket:
    tcp_socket = socket.socket(family, socket.SOCK_STREAM)
    try:
        tcp_socket.setblocking(False)
        await asyncio.get_running_loop().sock_connect(tcp_socket, address)
    except BaseException:
        tcp_socket.close()
        raise
    return tcp_socket


class TcpTransport(Transport):
    """TCP on a non-blocking socket."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()

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
    def acknowledge(self) -> None:
        _acknowledge(self._socket)

    @override
    def is_quiet(self) -> bool:
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    @override
    def interrupt(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    @override
    def close(self) -> None:
        self._socket.close()


class TlsTransport(Transport):
    """TLS over a non-blocking socket.

    OpenSSL gets what has arrived in large pieces, from memory: on a socket it would read each record of 16 KiB with two
    system calls. It decrypts into the caller's buffer; asyncio's streams would copy once more.
    """

    def __init__(self, tcp_socket: socket.socket, tls: ssl.SSLContext, name: str) -> None:
        self.tls = tls
        self._loop = asyncio.get_running_loop()
        self._socket = tcp_socket
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
    def acknowledge(self) -> None:
        _acknowledge(self._socket)

    @override
    def is_quiet(self) -> bool:
        if self._has_ended or self._error is not None or self._secured.pending() or self._received.pending:
            return False
        if self._socket.fileno() < 0 or self._received.eof:
            return False
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return not poll.poll(0)

    @override
    def interrupt(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    @override
    def close(self) -> None:
        self._socket.close()


def _acknowledge(connected: socket.socket) -> None:
    if sys.platform == "linux":
        with suppress(OSError):  # the connection has ended; the next read says so
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
