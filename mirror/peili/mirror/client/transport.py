"""Moves bytes to and from a peer over TCP or TLS, into the caller's buffers or a pipe. HTTP is in connection.py."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from typing_extensions import override

from peili.mirror.client.dns import Addresses, AddressResolver, SocketAddress
from peili.mirror.peer_api.addresses import AddressKinds
from peili.mirror.support.deadlines import Deadline
from peili.mirror.tls.identities import certificate_names
from peili.mirror.tls.nonblocking import retry
from peili.mirror.tls.peer_tls import PeerTLS

_CAN_SPLICE = sys.platform == "linux"


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
    """TLS on a non-blocking socket. OpenSSL decrypts into the caller's buffer: asyncio's streams would copy twice."""

    def __init__(self, secured: ssl.SSLSocket) -> None:
        self.tls = secured.context
        self._socket = secured

    @classmethod
    async def start(cls, tcp_socket: socket.socket, tls: ssl.SSLContext, name: str) -> TlsTransport:
        """Start TLS on a connected socket. The certificate of the peer must show `name`.

        Raises:
            OSError: The handshake failed. The socket is closed then.
        """
        secured = tls.wrap_socket(tcp_socket, server_hostname=name, do_handshake_on_connect=False)
        transport = cls(secured)
        try:
            await retry(secured, secured.do_handshake)
        except BaseException:
            secured.close()
            raise
        return transport

    def certificate_names(self) -> frozenset[str]:
        """Return the names in the verified certificate of the peer."""
        return certificate_names(self._socket.getpeercert())

    @override
    async def send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[await retry(self._socket, partial(self._socket.send, left)) :]

    @override
    async def recv_into(self, buffer: memoryview) -> int:
        return await retry(self._socket, partial(self._socket.recv_into, buffer))

    @override
    def recv_nowait(self, buffer: memoryview) -> int:
        try:
            return self._socket.recv_into(buffer)
        except OSError:  # nothing has arrived; the next `recv_into` raises what is wrong
            return 0

    @override
    def acknowledge(self) -> None:
        _acknowledge(self._socket)

    @override
    def is_quiet(self) -> bool:
        if self._socket.fileno() < 0 or self._socket.pending():
            return False
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return not poll.poll(0)

    @override
    def interrupt(self) -> None:
        with suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # that of SSLSocket is not for another task

    @override
    def close(self) -> None:
        self._socket.close()


def _acknowledge(connected: socket.socket) -> None:
    if sys.platform == "linux":
        with suppress(OSError):  # the connection has ended; the next read says so
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
