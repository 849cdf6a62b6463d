"""The clients of the fuzzer of the doors: they change records as they say, and see who is answered."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from bench.door_clients import LAST, Fault, RecordChange, RecordClient, TlsClient
from tests.support.certificates import Certificate, make_certificate
from tests.support.stream_server import stream_server
from typing_extensions import override

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("change", "sent"),
    [
        (RecordChange(how=0, piece=b"xy"), b"xyabcd"),
        (RecordChange(how=1, piece=b"xy"), b"abcdxy"),
        (RecordChange(how=2, at=1, piece=b"xy"), b"axybcd"),
        (RecordChange(how=3, at=1, piece=b"xy"), b"axyd"),
        (RecordChange(how=4, at=1, piece=b"xy"), b"a"),
        (RecordChange(flight=1, piece=b"xy"), b"abcd"),
    ],
)
def test_a_change_of_the_first_flight(change: RecordChange, sent: bytes) -> None:
    assert RecordChange.parse(change.head() + change.piece) == change
    assert change.apply(b"abcd", 0) == sent


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff" * 4, b"\x07\x0b\xff\xff" + b"x" * 2000])
def test_any_bytes_are_a_change(data: bytes) -> None:
    change = RecordChange.parse(data)
    for flight in range(3):
        change.apply(b"abcd", flight)


@pytest.mark.parametrize("who", [0, 2, 3])
@pytest.mark.anyio
async def test_a_door_answers_only_the_certificate_of_a_peer(tmp_path: Path, who: int) -> None:
    trusted, foreign = make_certificate(tmp_path / "trusted"), make_certificate(tmp_path / "foreign")
    async with _server(trusted.server_context()) as port:
        received = await asyncio.to_thread(_exchange, port, trusted, foreign, RecordChange(who))
    assert received == (_ANSWER if who == 0 else b"")


@pytest.mark.anyio
async def test_a_door_that_answers_anybody_is_a_fault(tmp_path: Path) -> None:
    trusted, foreign = make_certificate(tmp_path / "trusted"), make_certificate(tmp_path / "foreign")
    context = trusted.server_context()
    context.verify_mode = ssl.CERT_NONE
    async with _server(context) as port:
        with pytest.raises(Fault, match="without the certificate of a peer"):
            await asyncio.to_thread(_exchange, port, trusted, foreign, RecordChange(who=2))


@pytest.mark.anyio
async def test_inputs_are_sent_inside_tls(tmp_path: Path) -> None:
    trusted = make_certificate(tmp_path / "trusted")
    got: list[bytes] = []
    async with _server(trusted.server_context(), got) as port:
        client = TlsClient(port, trusted)
        assert await asyncio.to_thread(client.exchange, b"\x00\xff") == _ANSWER
        assert await asyncio.to_thread(client.get) == _ANSWER
    assert got == [b"\x00\xff\r\n\r\n" + LAST, LAST]


@pytest.mark.anyio
async def test_a_door_may_break_off_a_handshake(tmp_path: Path) -> None:
    """On a busy machine, a handshake may take longer than a door allows."""

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    client = TlsClient(0, make_certificate(tmp_path / "trusted"))
    async with stream_server(leave) as client.port:
        assert await asyncio.to_thread(client.exchange, b"x") == b""
        assert await asyncio.to_thread(client.get) == b""


class ResetConnection(socket.socket):
    """A connection to `other` that is reset just after the first wait for bytes has timed out."""

    other: socket.socket | None = None

    @override
    def recv(self, size: int, flags: int = 0, /) -> bytes:
        other, self.other = self.other, None
        if other is None:
            return super().recv(size, flags)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        other.close()
        raise TimeoutError


def test_a_door_may_reset_a_connection_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted, foreign = make_certificate(tmp_path / "trusted"), make_certificate(tmp_path / "foreign")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def connect(address: tuple[str, int], timeout: float) -> ResetConnection:
            connection = ResetConnection()
            connection.settimeout(timeout)
            connection.connect(address)
            connection.other, _ = listener.accept()
            return connection

        monkeypatch.setattr(socket, "create_connection", connect)
        assert _exchange(listener.getsockname()[1], trusted, foreign, RecordChange()) == b""


def _exchange(port: int, trusted: Certificate, foreign: Certificate, change: RecordChange) -> bytes:
    return RecordClient(port, trusted, foreign).exchange(change.head() + change.piece)


@asynccontextmanager
async def _server(context: ssl.SSLContext, got: list[bytes] | None = None) -> AsyncGenerator[int]:
    """Run a server that answers the good request, and closes the connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.readuntil(LAST)
        if got is not None:
            got.append(data)
        writer.write(_ANSWER)

    async with stream_server(answer, tls=context) as port:
        yield port
