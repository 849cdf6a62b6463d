"""Clients that stall, disconnect or are too many: what they use is freed."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from pathlib import Path

import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tests.mirror.doors.in_memory_host import DOORS
from tests.mirror.doors.served_host import SIZE, ZEROS_PATH, ZerosStore, open_request, served_host
from tests.support.plain_http import plain_client
from tests.support.waiting import until

from peili.mirror import Limits, Mirror
from peili.mirror.server.listening import bind
from peili.mirror.server.protocol import protocol_factory
from peili.routers.memory import MemoryRouter

pytestmark = pytest.mark.anyio


async def count_remaining(sock: object) -> int:
    """Return how many bytes of a response remain to be read. The response must end."""
    loop = asyncio.get_running_loop()
    count = 0
    async with asyncio.timeout(60):
        try:
            while data := await loop.sock_recv(sock, 1 << 20):  # type: ignore[arg-type]
                count += len(data)
        except ConnectionError:
            pass
    return count


def is_open_on_the_server(sock: socket.socket) -> bool:
    """Whether the server, on this machine, still has the connection. `sock` itself does not show that."""
    ours, theirs = sock.getsockname()[1], sock.getpeername()[1]
    return re.search(f":{theirs:04X} [0-9A-F]+:{ours:04X} ", Path("/proc/net/tcp").read_text()) is not None


@pytest.mark.parametrize("door", DOORS)
async def test_a_stalled_client_is_cut_off(door: str, caplog: pytest.LogCaptureFixture) -> None:
    async with served_host(limits=Limits(reader_timeout=0.3)) as host:
        with open_request(host.address(door), ZEROS_PATH) as sock:
            await until(lambda: len(host.store.opened) == 1)
            async with asyncio.timeout(60):
                await host.store.opened[0].closed.wait()
            await until(lambda: host.mirror.metrics.limited.value("reader_timeout") == 1)
            assert await count_remaining(sock) < SIZE
        async with plain_client(base_url=host.url(door)) as client:
            assert (await client.get("/v2/")).status_code == 200
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_the_kernel_drops_no_client_before_the_door_counts_it() -> None:
    [listening] = bind("127.0.0.1:0", any_host="127.0.0.1", reader_timeout=0.3)
    with listening:
        assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 600


@pytest.mark.parametrize("door", DOORS)
async def test_a_client_that_stalls_at_the_end_is_dropped(door: str) -> None:
    async with served_host(limits=Limits(reader_timeout=0.3)) as host:
        added = host.store.add(bytes(512 << 10))
        with open_request(host.address(door), f"/v2/registry.example/demo/blobs/{added.digest}") as sock:
            assert is_open_on_the_server(sock)
            await until(lambda: not is_open_on_the_server(sock))
            assert await count_remaining(sock) < added.size


@pytest.mark.parametrize("door", DOORS)
async def test_a_slow_client_is_served(door: str) -> None:
    """It is served for longer than later clients that read nothing."""
    async with served_host(limits=Limits(reader_timeout=1)) as host:
        loop, opened = asyncio.get_running_loop(), host.store.opened
        with open_request(host.address(door), ZEROS_PATH, buffer=1 << 20) as sock:
            await until(lambda: len(opened) == 1)
            for others in (1, 2):
                with open_request(host.address(door), ZEROS_PATH):
                    while len(opened) <= others or not opened[others].closed.is_set():
                        async with asyncio.timeout(60):
                            assert await loop.sock_recv(sock, 256 << 10)
                        await asyncio.sleep(0.002)
            assert not opened[0].closed.is_set()


@pytest.mark.parametrize("door", DOORS)
async def test_a_disconnect_is_noticed_if_send_never_blocks(door: str) -> None:
    """`send` of uvicorn never blocks if the connection is lost, or if the client is as fast as this host."""
    sent, has_sent = 0, asyncio.Event()

    async def receive() -> Message:
        await has_sent.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal sent
        sent += len(message.get("body", b""))
        if sent:
            has_sent.set()

    store = ZerosStore()
    mirror = Mirror(store, MemoryRouter(), identity="this-host")
    scope = {
        "type": "http",
        "method": "GET",
        "path": ZEROS_PATH,
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    app: ASGIApp = getattr(mirror, door)
    async with mirror:
        await app({**scope, "http_version": "1.1", "client": ("127.0.0.1", 1)}, receive, send)
        assert 0 < sent < SIZE
        assert store.opened[0].closed.is_set()


@pytest.mark.parametrize("door", DOORS)
async def test_a_disconnect_closes_the_content_at_once(door: str, caplog: pytest.LogCaptureFixture) -> None:
    async with served_host() as host:
        with open_request(host.address(door), ZEROS_PATH):
            await until(lambda: len(host.store.opened) == 1)
        async with asyncio.timeout(60):
            await host.store.opened[0].closed.wait()
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_uploads_above_the_limit_of_a_peer_are_refused() -> None:
    async with (
        served_host(limits=Limits(uploads_per_peer=2)) as host,
        plain_client(base_url=host.url("peer")) as client,
    ):
        with open_request(host.address("peer"), ZEROS_PATH):
            with open_request(host.address("peer"), ZEROS_PATH):
                await until(lambda: len(host.store.opened) == 2)
                response = await client.get(ZEROS_PATH)
                assert response.status_code == 429
                assert response.json()["errors"][0]["code"] == "TOOMANYREQUESTS"
                assert response.headers["Retry-After"] == "1"
                assert (await client.head(ZEROS_PATH)).status_code == 200
            await host.store.opened[1].closed.wait()
            assert (await client.get(ZEROS_PATH, headers={"Range": "bytes=0-9"})).content == bytes(10)


async def test_the_limit_of_uploads_is_for_the_peer_door_only() -> None:
    async with served_host(limits=Limits(uploads=1)) as host:
        with open_request(host.address("peer"), ZEROS_PATH):
            await until(lambda: len(host.store.opened) == 1)
            async with plain_client() as client:
                part = {"Range": "bytes=0-9"}
                assert (await client.get(host.url("peer") + ZEROS_PATH, headers=part)).status_code == 429
                assert (await client.get(host.url("local") + ZEROS_PATH, headers=part)).content == bytes(10)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("beginning", [b"", b"G", b"GET /v2/ HTTP/1.1\r\nHost: door.exam"])
async def test_an_incomplete_request_times_out(door: str, beginning: bytes) -> None:
    async with served_host(limits=Limits(header_timeout=0.2)) as host:
        name, _, port = host.address(door).rpartition(":")
        reader, writer = await asyncio.open_connection(name, int(port))
        try:
            writer.write(beginning)
            async with asyncio.timeout(60):
                assert await reader.read() == b""
        finally:
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize("door", DOORS)
async def test_a_long_response_does_not_time_out(door: str) -> None:
    async with served_host(limits=Limits(header_timeout=0.2)) as host:
        with open_request(host.address(door), ZEROS_PATH):
            await until(lambda: len(host.store.opened) == 1)
            await asyncio.sleep(0.6)
            assert not host.store.opened[0].closed.is_set()


async def test_a_lost_connection_starts_no_timer() -> None:
    called, disconnected, limited = asyncio.Event(), asyncio.Event(), list[str]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        called.set()
        await disconnected.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_keep_alive=0, ws="none")
    config.load()
    protocol_factory(config, Limits(header_timeout=0.1), limited.append)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        await until(lambda: server.started)
        _, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await called.wait()
        writer.close()
        await until(lambda: not server.server_state.connections)
        disconnected.set()
        await until(lambda: not server.server_state.tasks)
        await asyncio.sleep(0.5)  # longer than it would be waited for
        server.should_exit = True
        await serving
    assert limited == []
