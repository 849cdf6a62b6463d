"""The clients of bench/door_fuzzer.py: each sends an input to a door on a new connection, and returns the answer.

One sends it as it is, one inside mutual TLS, and one puts it into the records of mutual TLS.
"""

from __future__ import annotations

import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tests.support.certificates import Certificate
from typing_extensions import override

LAST = b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
"""A good request, after which the door closes the connection."""
PATIENCE = 20.0
_SHORT = 0.05
"""Seconds that a client usually waits for records before it ends its side. The door may wait for more bytes."""
_HOST = "127.0.0.1"
_PIECE = 1 << 16


class Fault(Exception):
    """The door has broken a rule."""


class DoorClient(ABC):
    """Sends inputs to the door at `port`."""

    def __init__(self, port: int) -> None:
        self.port = port

    @abstractmethod
    def exchange(self, data: bytes) -> bytes:
        """Send `data` and then a good request on a new connection.

        Returns:
            All bytes until the door closes the connection, as they are before TLS encrypts them.

        Raises:
            Fault: The connection stays open, or the door answers a client that it must not answer.
        """

    @abstractmethod
    def get(self) -> bytes:
        """Send only the good request."""

    def seeds(self, requests: Sequence[bytes]) -> Sequence[bytes]:
        """Return the inputs from which the fuzzer starts. `requests` are some for the door."""
        return requests


class PlainClient(DoorClient):
    """Sends inputs as they are."""

    @override
    def exchange(self, data: bytes) -> bytes:
        return self._send(data + b"\r\n\r\n" + LAST)

    @override
    def get(self) -> bytes:
        return self._send(LAST)

    def _send(self, data: bytes) -> bytes:
        try:
            with self._connected() as connection:
                return _exchange(connection, data)
        except (ConnectionError, ssl.SSLError):  # a handshake that takes too long, on a busy machine
            return b""

    def _connected(self) -> socket.socket:
        return socket.create_connection((_HOST, self.port), timeout=PATIENCE)


class TlsClient(PlainClient):
    """Sends inputs inside mutual TLS."""

    def __init__(self, port: int, certificate: Certificate) -> None:
        super().__init__(port)
        self._context = certificate.client_context()

    @override
    def _connected(self) -> socket.socket:
        return self._context.wrap_socket(super()._connected(), server_hostname=_HOST)


class RecordClient(TlsClient):
    """Makes a handshake and sends the good request, and changes its own records on the way, as the input says.

    Args:
        port: The port of the door.
        trusted: A certificate of a peer.
        foreign: A certificate of another authority.
    """

    def __init__(self, port: int, trusted: Certificate, foreign: Certificate) -> None:
        super().__init__(port, trusted)
        nobody = ssl.create_default_context(cafile=trusted.ca)
        stranger = ssl.create_default_context(cafile=trusted.ca)
        stranger.load_cert_chain(foreign.cert, foreign.key)
        self._contexts = (self._context, self._context, nobody, stranger)

    @override
    def exchange(self, data: bytes) -> bytes:
        change = RecordChange.parse(data)
        received = bytearray()
        with socket.create_connection((_HOST, self.port), timeout=PATIENCE) as connection:
            try:
                with suppress(ssl.SSLError, ConnectionError):  # the door refuses the records
                    self._converse(connection, change, received)
                _drain(connection)
            except TimeoutError as error:
                raise Fault("the connection stays open") from error
        if received and self._contexts[change.who] is not self._context:
            raise Fault("a client without the certificate of a peer is answered")
        return bytes(received)

    @override
    def seeds(self, requests: Sequence[bytes]) -> Sequence[bytes]:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with suppress(ssl.SSLWantReadError):
            self._context.wrap_bio(incoming, outgoing, server_hostname=_HOST).do_handshake()
        pieces = (b"", outgoing.read(), requests[0], *_RECORDS)
        return [
            RecordChange(who, flight, number % 5, 7 * number).head() + piece
            for who in (0, 2, 3)
            for flight in range(3)
            for number, piece in enumerate(pieces)
        ]

    def _converse(self, connection: socket.socket, change: RecordChange, received: bytearray) -> None:
        """Put what the door sends into `received`. Raises SSLError and ConnectionError if the door refuses a record."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        secured = self._contexts[change.who].wrap_bio(incoming, outgoing, server_hostname=_HOST)
        flight = 0
        for waits in _steps(secured, received):
            if outgoing.pending:
                connection.sendall(change.apply(outgoing.read(), flight))
                flight += 1
            if waits:
                piece = _receive(connection, PATIENCE if change.is_patient else _SHORT)
                if not piece:
                    return
                incoming.write(piece)


@dataclass(frozen=True, slots=True)
class RecordChange:
    """A change of what a client sends over TLS.

    Attributes:
        who: Which certificate the client has: 0 and 1 are that of a peer, 2 is none, 3 is that of another authority.
        flight: What is changed: 0 is the first message, 1 the rest of the handshake, 2 the request.
        how: 0 to 4: put `piece` before it, behind it, into it, in place of a part of it, or cut it off there.
        at: Where in it.
        is_patient: Whether the client waits for the door, instead of ending its side.
        piece: Any bytes.
    """

    who: int = 0
    flight: int = 0
    how: int = 0
    at: int = 0
    is_patient: bool = False
    piece: bytes = b""

    @classmethod
    def parse(cls, data: bytes) -> RecordChange:
        """Make a change of any bytes."""
        first, second, high, low, *_ = *data[:4], 0, 0, 0, 0
        return cls(first % 4, first // 4 % 3, second % 5, high << 8 | low, first >= 0xF0, data[4:])

    def head(self) -> bytes:
        """Return the bytes that `parse` reads, without `piece`."""
        return bytes([self.flight * 4 + self.who, self.how, self.at >> 8, self.at & 0xFF])

    def apply(self, sent: bytes, flight: int) -> bytes:
        """Return what is sent in place of `sent`, which is one flight."""
        if flight != self.flight:
            return sent
        at = self.at % (len(sent) + 1)
        return (
            self.piece + sent,
            sent + self.piece,
            sent[:at] + self.piece + sent[at:],
            sent[:at] + self.piece + sent[at + len(self.piece) :],
            sent[:at],
        )[self.how]


_RECORDS = (
    bytes.fromhex("15030300020228"),  # an alert: handshake_failure
    bytes.fromhex("15030300020100"),  # an alert: close_notify
    bytes.fromhex("140303000101"),  # change_cipher_spec
    bytes.fromhex("1703030000"),  # application data, empty
    bytes.fromhex("170303ffff"),  # application data, too long
    bytes.fromhex("1703034100"),
    bytes.fromhex("160303000418000000"),  # a KeyUpdate that is not encrypted
    bytes.fromhex("1603030004010000ff"),  # the beginning of a ClientHello
    bytes.fromhex("802e0100020015000000100100800300800700c0"),  # SSL 2
    bytes.fromhex("18030300030100ff"),  # a heartbeat
)


def _steps(secured: ssl.SSLObject, received: bytearray) -> Iterator[bool]:
    """Make a handshake, send the good request, and read to the end.

    Yields whether bytes must arrive before the next step. There may be some to send, too.
    """
    while True:
        try:
            secured.do_handshake()
            break
        except ssl.SSLWantReadError:
            yield True
    yield False
    secured.write(LAST)
    while True:
        with suppress(ssl.SSLWantReadError):
            while piece := secured.read(_PIECE):
                received += piece
            return
        yield True


def _receive(connection: socket.socket, seconds: float) -> bytes:
    """Return what arrives in time, or after this side has ended. Raises TimeoutError."""
    connection.settimeout(seconds)
    try:
        return connection.recv(_PIECE)
    except TimeoutError:
        _end(connection)
        return connection.recv(_PIECE)


def _drain(connection: socket.socket) -> None:
    """End this side, and read until the other side has ended, too. Raises TimeoutError."""
    _end(connection)
    with suppress(ConnectionError):
        while connection.recv(_PIECE):
            pass


def _end(connection: socket.socket) -> None:
    """End this side, unless the connection has ended, and wait longer from now on."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
    connection.settimeout(PATIENCE)


def _exchange(connection: socket.socket, data: bytes) -> bytes:
    """Send `data`, and return all bytes until the connection is closed. Raises Fault if it stays open."""
    received = bytearray()
    try:
        connection.sendall(data)
        while piece := connection.recv(_PIECE):
            received += piece
    except TimeoutError as error:
        raise Fault("the connection stays open") from error
    except (ConnectionError, ssl.SSLError):
        pass
    return bytes(received)
