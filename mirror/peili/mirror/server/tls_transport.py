"""The server's side of a TLS connection, as a transport for asyncio's protocols.

OpenSSL works on the socket itself. asyncio's own TLS instead moves all bytes through two buffers in memory, and makes a
new bytes object of each piece.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from contextlib import suppress
from typing import cast

from typing_extensions import override

from peili.mirror.limits import KIB
from peili.mirror.support.deadlines import Deadline
from peili.mirror.tls.nonblocking import retry

_READ_SIZE = 64 * KIB  # more than one record of TLS, so that OpenSSL keeps nothing back
_HIGH_WATER = 64 * KIB
_CLOSE_TIMEOUT = 30.0
"""Seconds in which `close` sends what was written before. asyncio's TLS takes as long."""
_MAX_DISCARDED = 16
"""How many reads of unread bytes `close` makes, so that the connection is not reset while the last bytes are sent."""
TLS_PIECE = 256 * KIB
"""The most bytes that one call of OpenSSL encrypts and sends. If the socket has no room for all of them, the next call
must begin with the same bytes, and must not have fewer.
"""


class TlsServerTransport(asyncio.Transport):
    """A connection after its handshake. `start` makes it.

    As with asyncio's transports, the protocol is called on the loop, `write` never waits, and `close` sends what was
    written before.

    Args:
        secured: The socket. The transport owns it, and closes it.
        protocol: Receives the bytes.

    Attributes:
        secured: The socket. Others may send with it while `get_write_buffer_size` is 0.
    """

    def __init__(self, secured: ssl.SSLSocket, protocol: asyncio.Protocol) -> None:
        super().__init__(
            {
                "peercert": secured.getpeercert(),
                "peername": secured.getpeername(),
                "socket": secured,
                "sockname": secured.getsockname(),
                "ssl_object": secured,
                "sslcontext": secured.context,
            }
        )
        self.secured = secured
        self._loop = asyncio.get_running_loop()
        self._protocol: asyncio.BaseProtocol = protocol
        self._unsent = deque[memoryview]()
        self._unsent_size = 0
        self._high, self._low = _HIGH_WATER, _HIGH_WATER // 4
        self._is_reading = self._is_closing = self._is_lost = self._is_writing_paused = False
        self._closing: asyncio.TimerHandle | None = None  # while `close` sends the rest

    @classmethod
    async def start(
        cls, connected: socket.socket, context: ssl.SSLContext, protocol: asyncio.Protocol, timeout: float
    ) -> None:
        """Make the TLS handshake on a connected socket, and call ``protocol.connection_made``.

        Args:
            connected: The socket. It is taken over, and closed if this fails.
            context: The TLS context of the server.
            protocol: The protocol.
            timeout: Seconds for the handshake.

        Raises:
            OSError: The handshake failed. TimeoutError and SSLError are such errors.
        """
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        secured = context.wrap_socket(connected, server_side=True, do_handshake_on_connect=False)
        try:
            async with Deadline(timeout):
                await retry(secured, secured.do_handshake)
            transport = cls(secured, protocol)
        except BaseException:
            _close(secured)
            raise
        try:
            protocol.connection_made(transport)
        except BaseException:
            transport.abort()
            raise
        transport.resume_reading()

    @override
    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    @override
    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    @override
    def is_closing(self) -> bool:
        return self._is_closing

    @override
    def is_reading(self) -> bool:
        return self._is_reading

    @override
    def pause_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self.secured)

    @override
    def resume_reading(self) -> None:
        if not self._is_reading and not self._is_closing:
            self._is_reading = True
            self._loop.add_reader(self.secured, self._on_readable)

    @override
    def get_write_buffer_size(self) -> int:
        return self._unsent_size

    @override
    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    @override
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = _HIGH_WATER if low is None else 4 * low
        self._high, self._low = high, high // 4 if low is None else low
        self._set_writing_paused()

    @override
    def can_write_eof(self) -> bool:
        return False

    @override
    def write_eof(self) -> None:
        raise NotImplementedError

    @override
    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not data or self._is_closing:
            return
        is_first = not self._unsent
        self._unsent.append(memoryview(bytes(data)))
        self._unsent_size += len(data)
        if is_first and not self._send_all() and self._unsent:
            self._loop.add_writer(self.secured, self._on_writable)
        self._set_writing_paused()

    @override
    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self.pause_reading()
            if not self._unsent:
                self._loop.call_soon(self._end)
            else:
                self._closing = self._loop.call_later(_CLOSE_TIMEOUT, self._fail, TimeoutError("not sent in time"))

    @override
    def abort(self) -> None:
        self._fail(None)

    def _on_readable(self) -> None:
        try:
            data = self.secured.recv(_READ_SIZE)
        except ssl.SSLWantReadError:
            return  # a part of a record, or a message of TLS itself
        except OSError as error:  # also SSLWantWriteError, if OpenSSL has to answer before it reads on
            self._fail(error)
            return
        try:
            self._receive(data)
        except Exception as error:  # noqa: BLE001 - as asyncio's transports do
            self._loop.call_exception_handler(
                {"message": "the protocol failed", "exception": error, "transport": self, "protocol": self._protocol}
            )
            self._fail(error)

    def _receive(self, data: bytes) -> None:
        protocol = cast("asyncio.Protocol", self._protocol)
        if data:
            protocol.data_received(data)
        else:
            protocol.eof_received()
            self.close()

    def _on_writable(self) -> None:
        is_all_sent = self._send_all()
        if is_all_sent:
            self._loop.remove_writer(self.secured)
        self._set_writing_paused()
        if is_all_sent and self._is_closing:
            self._end()

    def _send_all(self) -> bool:
        """Send what the socket takes now. Return whether that was everything."""
        try:
            while self._unsent:
                piece = self._unsent[0]
                count = self.secured.send(piece[:TLS_PIECE])
                self._unsent_size -= count
                if count < len(piece):
                    self._unsent[0] = piece[count:]
                else:
                    self._unsent.popleft()
        except ssl.SSLWantWriteError:
            return False
        except OSError as error:  # also SSLWantReadError: the client has sent a part of a message of TLS itself
            self._fail(error)
            return False
        return True

    def _set_writing_paused(self) -> None:
        """Tell the protocol if the bytes that are not sent yet have become too many, or few again."""
        if self._is_writing_paused:
            if self._unsent_size <= self._low:
                self._is_writing_paused = False
                self._protocol.resume_writing()
        elif self._unsent_size > self._high:
            self._is_writing_paused = True
            self._protocol.pause_writing()

    def _fail(self, error: Exception | None) -> None:
        """Drop what was not sent, and close. Idempotent."""
        if self._is_lost:
            return
        self.pause_reading()
        self._loop.remove_writer(self.secured)
        self._unsent.clear()
        self._unsent_size = 0
        self._is_closing = True
        self._loop.call_soon(self._lose, error)

    def _end(self) -> None:
        if not self._is_lost:
            with suppress(OSError, ValueError):
                self.secured.unwrap()  # tells the other side that this is the end; its answer is not waited for
            self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if not self._is_lost:
            self._is_lost = True
            if self._closing is not None:
                self._closing.cancel()
            _close(self.secured)
            protocol, self._protocol = self._protocol, asyncio.Protocol()  # else the two would keep each other alive
            protocol.connection_lost(error)


def _close(secured: ssl.SSLSocket) -> None:
    """Close a socket. One with unread bytes would be reset: the client would lose the last bytes, or an alert."""
    with suppress(OSError):
        for _ in range(_MAX_DISCARDED):
            if not socket.socket.recv(secured, _READ_SIZE):
                break
    secured.close()
