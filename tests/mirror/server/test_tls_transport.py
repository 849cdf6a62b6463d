"""The server's side of TLS on real sockets, with asyncio and uvloop. The client's side is asyncio's own."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import socket
import ssl
import weakref
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
from tests.support.certificates import Certificate, make_certificate
from tests.support.tls_records import HANDSHAKE, KEY_UPDATE, KEY_UPDATE_REQUESTED, RecordClient
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror.server import tls_transport
from peili.mirror.server.socket_writer import TlsSocketWriter, is_client_gone
from peili.mirror.server.tls_transport import TlsServerTransport

pytestmark = pytest.mark.anyio

DATA = os.urandom(9 << 20)
TIMEOUT = 60.0


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


class Server(asyncio.Protocol):
    """The server's side of a connection. It notes what happens."""

    transport: TlsServerTransport
    writer: TlsSocketWriter

    def __init__(self) -> None:
        self.received = b""
        self.calls: list[str] = []
        self.lost: list[Exception | None] = []

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("TlsServerTransport", transport)
        self.writer = TlsSocketWriter(self.transport)

    @override
    def data_received(self, data: bytes) -> None:
        if data == b"fail":
            raise ValueError(data)
        self.received += data

    @override
    def eof_received(self) -> None:
        self.calls.append("eof")

    @override
    def pause_writing(self) -> None:
        self.calls.append("pause")

    @override
    def resume_writing(self) -> None:
        self.calls.append("resume")

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.writer.connection_lost()
        self.calls.append("lost")
        self.lost.append(exc)


@asynccontextmanager
async def tcp_connection() -> AsyncGenerator[tuple[socket.socket, socket.socket]]:
    """Yield the sockets of the server and of the client, which has a small buffer."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        client.setblocking(False)
        await loop.sock_connect(client, listener.getsockname())
        with listener.accept()[0] as server:
            async with asyncio.timeout(TIMEOUT):
                yield server, client


@asynccontextmanager
async def connected(
    certificate: Certificate,
) -> AsyncGenerator[tuple[Server, asyncio.StreamReader, asyncio.StreamWriter]]:
    """Yield the server's side of a connection, and the client's."""
    async with tcp_connection() as (accepted, dialled):
        server = Server()
        client, _ = await asyncio.gather(
            asyncio.open_connection(
                sock=dialled, ssl=certificate.client_context(), server_hostname="127.0.0.1", limit=64 << 10
            ),
            TlsServerTransport.start(accepted, certificate.server_context(), server, TIMEOUT),
        )
        try:
            yield server, *client
        finally:
            server.writer.close()
            server.transport.abort()
            await until(lambda: server.lost)
            assert len(server.lost) == 1
            client[1].transport.abort()
            with suppress(OSError):
                await client[1].wait_closed()


async def test_the_protocol_learns_who_is_at_the_other_side(certificate: Certificate) -> None:
    async with connected(certificate) as (server, _, client):
        shown = server.transport.get_extra_info("peercert")
        assert ("IP Address", "127.0.0.1") in shown["subjectAltName"]
        assert server.transport.get_extra_info("peername") == client.get_extra_info("sockname")
        assert server.transport.get_extra_info("sockname") == client.get_extra_info("peername")
        assert isinstance(server.transport.get_extra_info("sslcontext"), ssl.SSLContext)


async def test_bytes_arrive_in_both_directions_in_order(certificate: Certificate) -> None:
    async with connected(certificate) as (server, reader, client):
        client.write(DATA)
        head = os.urandom(3 << 20)  # more than the sockets hold: the transport keeps some of it
        receiving = asyncio.create_task(reader.readexactly(len(head) + len(DATA) + 8))
        server.transport.write(head)
        buffer = bytearray(1 << 20)
        for start in range(0, len(DATA), len(buffer)):
            buffer[:] = DATA[start : start + len(buffer)]
            await server.writer.send(memoryview(buffer))
            buffer[:] = bytes(len(buffer))  # it may be used again
        assert server.writer.take_sent_count() == len(DATA)
        server.transport.write(b"the last")
        assert await receiving == head + DATA + b"the last"
        await until(lambda: server.received == DATA)


async def test_the_protocol_is_told_when_it_has_written_too_much(certificate: Certificate) -> None:
    async with connected(certificate) as (server, reader, _):
        server.transport.write(DATA)
        assert server.calls == ["pause"]
        assert 0 < server.transport.get_write_buffer_size() < len(DATA)
        assert await reader.readexactly(len(DATA)) == DATA
        await until(lambda: server.calls == ["pause", "resume"])
        assert server.transport.get_write_buffer_size() == 0


async def test_close_sends_what_was_written_before(certificate: Certificate) -> None:
    async with connected(certificate) as (server, reader, _):
        server.transport.write(DATA)
        server.transport.close()
        assert server.transport.is_closing()
        server.transport.write(b"too late")
        assert await reader.read(-1) == DATA
        await until(lambda: server.lost)
        assert server.lost == [None]


async def test_close_waits_a_bounded_time_for_a_client_that_reads_nothing(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_transport, "_CLOSE_TIMEOUT", 0.1)
    async with connected(certificate) as (server, _, _):
        server.transport.write(DATA)
        server.transport.close()
        await until(lambda: server.lost)
        assert isinstance(server.lost[0], TimeoutError)


async def test_bytes_that_nobody_reads_do_not_reset_a_connection_that_is_closed(certificate: Certificate) -> None:
    async with connected(certificate) as (server, reader, client):
        server.transport.pause_reading()
        for _ in range(20):
            client.write(DATA[: 16 << 10])
            await asyncio.sleep(0)
        await client.drain()
        server.transport.write(DATA[: 32 << 10])
        server.transport.close()
        assert await reader.read(-1) == DATA[: 32 << 10]


@asynccontextmanager
async def connected_to_records(
    certificate: Certificate, keys: Path
) -> AsyncGenerator[tuple[Server, RecordClient, socket.socket]]:
    """Yield the server's side of a connection, a client that sends records of its own, and the client's socket."""
    async with tcp_connection() as (accepted, dialled):
        server, context = Server(), certificate.client_context()
        client, _ = await asyncio.gather(
            RecordClient.connect(dialled, context, "127.0.0.1", keys),
            TlsServerTransport.start(accepted, certificate.server_context(), server, TIMEOUT),
        )
        try:
            yield server, client, dialled
        finally:
            server.transport.abort()
            await until(lambda: server.lost)


async def test_half_of_a_message_of_tls_itself_is_waited_for(certificate: Certificate, tmp_path: Path) -> None:
    async with connected_to_records(certificate, tmp_path / "keys") as (server, client, _):
        await client.send(b"one, ")
        await client.send(KEY_UPDATE[:3], HANDSHAKE)
        await until(lambda: server.received == b"one, ")
        await client.send(KEY_UPDATE[3:], HANDSHAKE)
        client.use_new_keys()
        await client.send(b"two")
        await until(lambda: server.received == b"one, two")


async def test_a_client_that_stops_in_a_message_of_tls_itself_gets_no_answer(
    certificate: Certificate, tmp_path: Path
) -> None:
    """OpenSSL can't send then. The connection ends, and does not wait for ever or keep the loop busy."""
    async with connected_to_records(certificate, tmp_path / "keys") as (server, client, _):
        await client.send(b"a request")
        await client.send(KEY_UPDATE[:4], HANDSHAKE)  # OpenSSL waits for the rest as soon as it knows the length
        await until(lambda: server.received and not has_arrived(server))
        server.transport.write(b"an answer")
        await until(lambda: server.lost)
        assert isinstance(server.lost[0], ssl.SSLWantReadError)


async def test_a_client_that_reads_nothing_may_change_its_keys(certificate: Certificate, tmp_path: Path) -> None:
    async with connected_to_records(certificate, tmp_path / "keys") as (server, client, _):
        server.transport.write(DATA)
        await client.send(KEY_UPDATE_REQUESTED, HANDSHAKE)
        client.use_new_keys()
        await client.send(b"a request")
        await until(lambda: server.received == b"a request")
        assert not server.lost


def has_arrived(server: Server) -> bool:
    """Return whether there are bytes that the server has not read yet."""
    poll = select.poll()
    poll.register(server.transport.secured, select.POLLIN)
    return bool(poll.poll(0))


async def test_a_lost_connection_is_freed_at_once(certificate: Certificate) -> None:
    """A flood of connections must not have to wait for the garbage collector."""
    gc.disable()
    try:
        async with connected(certificate) as (server, reader, client):
            secured = weakref.ref(server.transport.secured)
            server.transport.write(b"something")
            await reader.readexactly(9)
            server.transport.close()
            await reader.read()
        del server, reader, client
        await until(lambda: secured() is None)
    finally:
        gc.enable()


async def test_nothing_follows_the_end_of_the_connection(certificate: Certificate) -> None:
    async with connected(certificate) as (server, reader, _):
        server.transport.write(DATA)
        server.transport.close()
        assert await reader.read(-1) == DATA
        await until(lambda: server.lost)
        assert server.calls == ["pause", "resume", "lost"]


async def test_abort_drops_what_was_not_sent(certificate: Certificate) -> None:
    async with connected(certificate) as (server, reader, _):
        server.transport.write(DATA)
        server.transport.abort()
        received = b""
        with suppress(OSError):
            received = await reader.read(-1)
        assert len(received) < len(DATA)


async def test_the_end_of_the_client_ends_the_connection(certificate: Certificate) -> None:
    async with connected(certificate) as (server, _, client):
        client.write(b"the last")
        client.close()
        await until(lambda: server.lost)
        assert (server.received, server.calls) == (b"the last", ["eof", "lost"])


async def test_nothing_is_received_while_reading_is_paused(certificate: Certificate) -> None:
    async with connected(certificate) as (server, reader, client):
        server.transport.pause_reading()
        client.write(DATA[:1000])
        await client.drain()
        server.transport.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        assert server.received == b""
        server.transport.resume_reading()
        await until(lambda: server.received == DATA[:1000])


async def test_an_error_of_the_protocol_ends_the_connection(certificate: Certificate) -> None:
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context["exception"]))
    async with connected(certificate) as (server, _, client):
        client.write(b"fail")
        await until(lambda: server.lost)
        assert server.lost == unhandled
        assert isinstance(unhandled[0], ValueError)


async def test_a_client_that_reads_nothing_times_out(certificate: Certificate) -> None:
    async with connected(certificate) as (server, _, _):
        server.writer.set_timeout(0.2)
        with pytest.raises(TimeoutError):
            await server.writer.send(DATA)


async def test_a_client_that_is_gone_makes_sending_fail(certificate: Certificate) -> None:
    async with connected(certificate) as (server, reader, client):
        sending = asyncio.create_task(server.writer.send(DATA))
        await reader.readexactly(1)
        client.transport.abort()
        with pytest.raises(OSError) as raised:  # noqa: PT011 - which one depends on who notices first
            await sending
        assert is_client_gone(raised.value)
        await until(lambda: server.lost)
        with pytest.raises(ConnectionResetError):
            await server.writer.send(DATA)


async def test_a_handshake_takes_no_longer_than_its_timeout(certificate: Certificate) -> None:
    async with tcp_connection() as (accepted, dialled):
        with pytest.raises(TimeoutError):
            await TlsServerTransport.start(accepted, certificate.server_context(), Server(), 0.2)
        assert await asyncio.get_running_loop().sock_recv(dialled, 1) == b""


@pytest.mark.parametrize("what", [b"", b"GET / HTTP/1.1\r\n\r\n"], ids=["nothing", "plain HTTP"])
async def test_a_client_without_tls_is_refused(what: bytes, certificate: Certificate) -> None:
    async with tcp_connection() as (accepted, dialled):
        await asyncio.get_running_loop().sock_sendall(dialled, what)
        dialled.shutdown(socket.SHUT_WR)
        with pytest.raises(ssl.SSLError):
            await TlsServerTransport.start(accepted, certificate.server_context(), Server(), TIMEOUT)
        await asyncio.get_running_loop().sock_recv(
            dialled, 1000
        )  # an alert, or nothing; but the connection is not reset


async def test_a_client_of_another_authority_is_refused(certificate: Certificate, tmp_path: Path) -> None:
    other = make_certificate(tmp_path / "other").client_context()
    other.load_verify_locations(certificate.ca)
    async with tcp_connection() as (accepted, dialled):
        connecting = asyncio.create_task(asyncio.open_connection(sock=dialled, ssl=other, server_hostname="127.0.0.1"))
        with pytest.raises(ssl.SSLError, match="certificate"):
            await TlsServerTransport.start(accepted, certificate.server_context(), Server(), TIMEOUT)
        with suppress(OSError):  # with TLS 1.3, the client learns it later
            _, client = await connecting
            client.transport.abort()
