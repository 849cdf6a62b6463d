"""The client's side of TLS, with a server that sends records of its choice."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import pytest
from tests.support.certificates import Certificate, make_certificate

from peili.mirror.client.transport import TlsTransport

pytestmark = pytest.mark.anyio

SIZES = [100, 256 << 10]
"""Of the reader's buffer: without room for what is encrypted, and with it."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


class RecordServer:
    """The server's side of a connection. What it encrypts is sent when a test says so."""

    def __init__(self, connected: socket.socket, context: ssl.SSLContext) -> None:
        self.socket = connected
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.secured = context.wrap_bio(self._received, self._to_send, server_side=True)

    async def shake_hands(self) -> None:
        while True:
            try:
                self.secured.do_handshake()
            except ssl.SSLWantReadError:
                await self.send(self._to_send.read())
                self._received.write(await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16))
            else:
                return await self.send(self._to_send.read())

    def first_answer(self, hello: bytes) -> bytes:
        """Return the answer to the first message of a client, with the certificate."""
        self._received.write(hello)
        with suppress(ssl.SSLWantReadError):
            self.secured.do_handshake()
        return self._to_send.read()

    def record(self, data: bytes) -> bytes:
        """Return a record with `data`."""
        self.secured.write(data)
        return self._to_send.read()

    def end(self) -> bytes:
        """Return the record that ends the stream."""
        with suppress(ssl.SSLWantReadError):
            self.secured.unwrap()
        return self._to_send.read()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)


@asynccontextmanager
async def connected(certificate: Certificate) -> AsyncGenerator[tuple[TlsTransport, RecordServer]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for each in (ours, theirs):
            each.setblocking(False)
        server = RecordServer(theirs, certificate.server_context())
        shaking = asyncio.create_task(server.shake_hands())
        transport = await TlsTransport.start(ours, certificate.client_context(), "127.0.0.1")
        await shaking
        yield transport, server


async def test_a_wrong_certificate_is_reported_although_the_server_reads_no_more(certificate: Certificate) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for each in (ours, theirs):
            each.setblocking(False)
        server = RecordServer(theirs, certificate.server_context())

        async def send_certificate() -> None:
            hello = await asyncio.get_running_loop().sock_recv(theirs, 1 << 16)
            theirs.shutdown(socket.SHUT_RD)  # the client's alert can't be sent
            await server.send(server.first_answer(hello))

        sending = asyncio.create_task(send_certificate())
        with pytest.raises(ssl.SSLCertVerificationError):
            await TlsTransport.start(ours, ssl.create_default_context(), "127.0.0.1")
        await sending


async def read(transport: TlsTransport, size: int) -> bytes:
    buffer = bytearray(size)
    async with asyncio.timeout(60):
        return bytes(buffer[: await transport.recv_into(memoryview(buffer))])


@pytest.mark.parametrize("size", SIZES)
async def test_a_wrong_record_is_reported_after_the_right_ones_and_again_each_time(
    certificate: Certificate, size: int
) -> None:
    async with connected(certificate) as (transport, server):
        right, wrong, after = (server.record(each * 50) for each in (b"r", b"w", b"a"))
        await server.send(right + wrong[:-1] + bytes([wrong[-1] ^ 1]) + after)
        assert await read(transport, size) == b"r" * 50
        assert transport.recv_nowait(memoryview(bytearray(size))) == 0
        for _ in range(2):
            with pytest.raises(ssl.SSLError, match=r"(?i)bad record mac"):
                await read(transport, size)
        assert not transport.is_quiet()


@pytest.mark.parametrize("size", SIZES)
async def test_a_stream_that_has_ended_is_not_quiet_although_the_socket_is_still_open(
    certificate: Certificate, size: int
) -> None:
    async with connected(certificate) as (transport, server):
        await server.send(server.record(b"the last bytes") + server.end())
        assert await read(transport, size) == b"the last bytes"
        assert not transport.is_quiet()
        assert await read(transport, size) == b""


async def test_bytes_that_have_arrived_count_although_no_answer_can_be_sent_any_more(certificate: Certificate) -> None:
    async with connected(certificate) as (transport, server):
        right, wrong = server.record(b"r" * 50), server.record(b"w" * 50)
        await server.send(right + wrong[:-1] + bytes([wrong[-1] ^ 1]))
        server.socket.close()  # so the alert about the wrong record can't be sent
        assert await read(transport, 100) == b"r" * 50
