"""Bytes to and from one peer, by TCP or TLS, into buffers of the caller's. What they mean is HTTP's matter
(peerconnection.py).
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from typing_extensions import override

from peili.mirror.client.dns import Addresses, AddressResolver, SocketAddress
from peili.mirror.support.deadlines import Deadline

_CAN_SPLICE = sys.platform == "linux"


@dataclass(frozen=True, slots=True)
class Origin:
    """Whom to connect to. Of a URL, what is before the path; `name` is what a certificate must show."""

    secure: bool
    host: str
    port: int
    name: str

    @classmethod
    def of(cls, url: str, tls_name: str | None) -> Origin:
        """The origin of `url`, a `Peer`'s. Raises UnicodeError where its host can't be a host's name."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        host = parts.hostname or ""
        if not host.isascii() or ".." in host:
            host = host.encode("idna").decode("ascii")
        return cls(secure, host, parts.port or (443 if secure else 80), tls_name or host)


class Transport(ABC):
    """An open connection. One task reads; errors are OSError. `close` it in any case."""

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Send all of `data`."""

    @abstractmethod
    async def recv_into(self, buffer: memoryview) -> int:
        """Wait for bytes and read them; how many. 0: the other side has ended."""

    def recv_now(self, buffer: memoryview) -> int:
        """Read what has come already; 0 where nothing has, or that can't be told."""
        return 0

    async def recv_pipe(self, pipe: int, count: int) -> int:
        """As `recv_into`, but up to `count` bytes move into a pipe, which must have room. Only where `can_splice`."""
        raise NotImplementedError

    @property
    def can_splice(self) -> bool:
        """Whether the kernel can move the bytes by itself."""
        return False

    @abstractmethod
    def is_quiet(self) -> bool:
        """Whether the other side neither ended nor said anything that was not read."""

    @abstractmethod
    def interrupt(self) -> None:
        """Let whoever reads see the end."""

    @abstractmethod
    def close(self) -> None:
        """Close at once. Nobody may be reading. Idempotent."""


async def connect(origin: Origin, tls: ssl.SSLContext | None, timeout: float, names: AddressResolver) -> Transport:
    """A new connection to `origin`, by `tls` where it is given, within `timeout` seconds. Raises OSError, of which
    TimeoutError is one, and UnicodeError.
    """
    async with Deadline(timeout):
        plain = await _connect(await names.addresses(origin.host, origin.port), timeout)
        if tls is None:
            return TcpTransport(plain)
        try:
            return await TlsTransport.over(plain, tls, origin.name)
        except BaseException:
            plain.close()
            raise


async def _connect(addresses: Addresses, timeout: float) -> socket.socket:
    """A socket connected to the first of `addresses` that takes it in its share of `timeout`."""
    problem: OSError = OSError("the host has no address")
    for family, address in addresses:
        try:
            async with Deadline(timeout / len(addresses)):
                return await _connect_to(family, address)
        except OSError as error:
            problem = error
    raise problem


async def _connect_to(family: int, address: SocketAddress) -> socket.socket:
    connecting = socket.socket(family, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connecting, address)
    except BaseException:
        connecting.close()
        raise
    return connecting


class TcpTransport(Transport):
    """TCP, on a non-blocking socket."""

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
    def recv_now(self, buffer: memoryview) -> int:
        try:
            return self._socket.recv_into(buffer)
        except OSError:  # nothing there; what is wrong is found by who waits for it
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
            await self._readable()

    async def _readable(self) -> None:
        ready = self._loop.create_future()
        self._loop.add_reader(self._socket.fileno(), _wake, ready)
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

    @override
    def interrupt(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    @override
    def close(self) -> None:
        self._socket.close()


class _Reader(asyncio.StreamReader):
    """One that tells how many bytes it holds. Whoever reads them takes them off `unread`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.unread = 0

    @override
    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride] - asyncio has nothing else
        self.unread += len(data)
        super().feed_data(data)


class TlsTransport(Transport):
    """TLS, by asyncio's streams: what it costs to decrypt hides what they cost."""

    def __init__(self, reader: _Reader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, plain: socket.socket, tls: ssl.SSLContext, name: str) -> TlsTransport:
        """TLS by a connected socket, with an other side whose certificate shows `name`. Raises OSError."""
        loop = asyncio.get_running_loop()
        reader = _Reader(loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.create_connection(lambda: protocol, sock=plain, ssl=tls, server_hostname=name)
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    @override
    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    @override
    async def recv_into(self, buffer: memoryview) -> int:
        data = await self._reader.read(len(buffer))
        buffer[: len(data)] = data
        self._reader.unread -= len(data)
        return len(data)

    @override
    def is_quiet(self) -> bool:
        ended = self._writer.is_closing() or self._reader.at_eof()
        return not ended and not self._reader.unread and not self._has_more()

    def _has_more(self) -> bool:
        """Whether something has come that the loop has not come round to."""
        poll = select.poll()
        poll.register(self._writer.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    @override
    def interrupt(self) -> None:
        self._writer.transport.abort()

    @override
    def close(self) -> None:
        self._writer.transport.abort()


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
