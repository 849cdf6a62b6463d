"""Socket writers on real sockets, with asyncio and uvloop."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import random
import resource
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.types import Message
from typing_extensions import override

from peili.mirror.server.socket_writer import (
    DirectSocketWriter,
    SocketSend,
    get_socket_writer,
    is_client_gone,
    wrap_send,
)

pytestmark = pytest.mark.anyio

DATA = random.Random(6).randbytes(9 << 20)


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


class Connection(asyncio.Protocol):
    """The server side of a connection."""

    transport: asyncio.Transport
    socket_writer: DirectSocketWriter

    def __init__(self) -> None:
        self.made = asyncio.Event()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.socket_writer = DirectSocketWriter(self.transport)
        self.made.set()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.socket_writer.connection_lost()


@asynccontextmanager
async def connected() -> AsyncGenerator[tuple[Connection, socket.socket]]:
    """Yield the server side with a socket writer, and the client's socket, whose buffer is small."""
    connection = Connection()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: connection, "127.0.0.1", 0)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        client.setblocking(False)
        await loop.sock_connect(client, server.sockets[0].getsockname())
        await connection.made.wait()
        try:
            async with asyncio.timeout(60):
                yield connection, client
        finally:
            connection.socket_writer.close()
            connection.transport.abort()
            server.close()
            await server.wait_closed()


async def receive(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (piece := await asyncio.get_running_loop().sock_recv(client, 1 << 20)):
        data += piece
    return data


@pytest.fixture
def fd(tmp_path: Path) -> Any:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with path.open("rb") as file:
        yield file.fileno()


async def test_writes_keep_their_order_with_the_transport(fd: int) -> None:
    async with connected() as (server, client):
        head = os.urandom(3 << 20)  # more than the sockets hold: the transport keeps some of it
        receiving = asyncio.create_task(receive(client, len(head) + len(DATA) + 8))
        server.transport.write(head)
        assert await server.socket_writer.sendfile(fd, 5, len(DATA) - 5) == len(DATA) - 5
        await server.socket_writer.send(memoryview(DATA)[:5])
        assert server.socket_writer.take_sent_count() == len(DATA)
        assert server.socket_writer.take_sent_count() == 0
        server.transport.write(b"the last")
        assert await receiving == head + DATA[5:] + DATA[:5] + b"the last"


async def test_a_buffer_may_be_reused_after_send() -> None:
    async with connected() as (server, client):
        receiving = asyncio.create_task(receive(client, len(DATA)))
        buffer = bytearray(1 << 20)
        for start in range(0, len(DATA), len(buffer)):
            buffer[:] = DATA[start : start + len(buffer)]
            await server.socket_writer.send(memoryview(buffer))
            buffer[:] = bytes(len(buffer))
        assert await receiving == DATA


async def test_sendfile_stops_at_the_end_of_the_file(fd: int) -> None:
    async with connected() as (server, client):
        receiving = asyncio.create_task(receive(client, 100))
        assert await server.socket_writer.sendfile(fd, len(DATA) - 100, 5000) == 100
        assert await receiving == DATA[-100:]
        assert await server.socket_writer.sendfile(fd, len(DATA), 10) == 0
        assert await server.socket_writer.sendfile(fd, 0, 0) == 0


async def test_splice_sends_the_bytes_of_a_pipe() -> None:
    async with connected() as (server, client):
        receiving = asyncio.create_task(receive(client, len(DATA)))
        out, into = os.pipe()
        try:
            for start in range(0, len(DATA), 50_000):
                piece = DATA[start : start + 50_000]
                assert os.write(into, piece) == len(piece)
                await server.socket_writer.splice(out, len(piece))
        finally:
            os.close(out)
            os.close(into)
        assert await receiving == DATA
        assert server.socket_writer.take_sent_count() == len(DATA)


async def test_a_client_that_reads_nothing_times_out(fd: int) -> None:
    async with connected() as (server, _):
        server.socket_writer.set_timeout(0.2)
        with pytest.raises(TimeoutError):
            await server.socket_writer.sendfile(fd, 0, len(DATA))


async def test_a_disconnect_raises(fd: int) -> None:
    async with connected() as (server, client):
        sending = asyncio.create_task(server.socket_writer.sendfile(fd, 0, len(DATA)))
        assert await receive(client, 1)
        client.close()
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on who notices first
            await sending
        with pytest.raises(OSError):  # noqa: PT011
            await server.socket_writer.send(DATA)


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


async def test_a_cancellation_leaks_nothing(fd: int) -> None:
    async with connected() as (server, client):
        before = descriptors()
        sending = asyncio.create_task(server.socket_writer.sendfile(fd, 0, len(DATA)))
        assert await receive(client, 1)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        server.socket_writer.close()
        server.socket_writer.close()
        assert descriptors() <= before
        server.transport.close()
        assert len(await receive(client, len(DATA))) < len(DATA)


async def test_prepare_reports_whether_a_descriptor_is_available() -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with connected() as (server, client):
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
        try:
            assert not server.socket_writer.prepare()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        assert server.socket_writer.prepare()
        before = descriptors()
        await server.socket_writer.send(b"the body")
        assert descriptors() == before
        assert await receive(client, 8) == b"the body"


@pytest.mark.parametrize(
    ("error", "is_gone"),
    [
        (BrokenPipeError(errno.EPIPE, ""), True),
        (ConnectionResetError("the client is gone"), True),
        (TimeoutError(), True),
        (OSError(errno.ETIMEDOUT, ""), True),
        (OSError(errno.EHOSTUNREACH, ""), True),
        (OSError("what a server says"), True),
        (OSError(errno.EMFILE, ""), False),
        (OSError(errno.ENOBUFS, ""), False),
        (OSError(errno.EIO, ""), False),
    ],
    ids=repr,
)
def test_is_client_gone(error: OSError, is_gone: bool) -> None:
    assert is_client_gone(error) == is_gone


async def test_wrapped_send_has_no_socket_writer_without_wrap_send() -> None:
    async def send(message: Message) -> None:
        pass

    async with connected() as (server, _):
        sending = SocketSend(send, server.socket_writer)

        @functools.wraps(sending)
        async def wrapped(message: Message) -> None:
            await sending(message)

        assert get_socket_writer(sending) is server.socket_writer
        assert get_socket_writer(wrapped) is None
        assert get_socket_writer(send) is None
        assert get_socket_writer(wrap_send(sending, wrapped)) is server.socket_writer
        assert get_socket_writer(wrap_send(send, wrapped)) is None
