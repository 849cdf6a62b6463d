"""Connections above the limit are closed at once, and do not affect the other door."""

from __future__ import annotations

import asyncio
import errno
import json
import resource
import socket
import ssl
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.mirror.doors.in_memory_host import DOORS
from tests.mirror.doors.served_host import ZEROS_PATH, open_request, served_host
from tests.support.certificates import make_certificate
from tests.support.waiting import until

from peili.mirror import Limits, Mirror, serve
from peili.mirror.server.acceptor import max_connections
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200"
REQUEST = b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
QUICK = 60.0


class IdleConnections:
    """Idle connections to one address."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def add(self, count: int) -> None:
        """Make `count` more connections. Those that are closed meanwhile count, too."""
        for _ in range(count):
            self._streams.append(await asyncio.open_connection(self._host, int(self._port)))

    @property
    def open(self) -> int:
        """The number of connections that the server has not closed."""
        return sum(1 for reader, _ in self._streams if not reader.at_eof() and reader.exception() is None)

    def close(self) -> None:
        for _, writer in self._streams:
            writer.transport.abort()


@contextmanager
def idle_connections(address: str) -> Generator[IdleConnections]:
    connections = IdleConnections(address)
    try:
        yield connections
    finally:
        connections.close()


async def ask(address: str, request: bytes = REQUEST) -> bytes:
    """Return the first bytes of the response; nothing if the connection was closed."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(QUICK):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request)
            return await reader.read(len(OK))
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()


async def wait_for_response(address: str) -> None:
    """Wait until a new connection is answered."""
    async with asyncio.timeout(QUICK):
        while await ask(address) != OK:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.05)


class FewDescriptorsProcess:
    """few_descriptors.py as a process. Its log goes to `log`."""

    def __init__(self, process: asyncio.subprocess.Process, doors: dict[str, str], log: Path) -> None:
        self._process = process
        self._log = log
        self.doors = doors

    async def command(self, name: str) -> int:
        """Send a command. Return the limit of descriptors."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{name}\n".encode())
        async with asyncio.timeout(QUICK):
            return int(await self._process.stdout.readline())

    @property
    def log(self) -> list[str]:
        return self._log.read_text().splitlines()


@asynccontextmanager
async def few_descriptors_process(log: Path, descriptors: int) -> AsyncGenerator[FewDescriptorsProcess]:
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.mirror.server.few_descriptors", str(descriptors)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(QUICK):
            doors = json.loads(await process.stdout.readline())
        yield FewDescriptorsProcess(process, doors, log)
        process.stdin.close()
        async with asyncio.timeout(QUICK):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture(scope="module", autouse=True)
def _descriptors() -> Generator[None]:
    """The clients of these tests need many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("descriptors", "count"), [(1024, 1100), (60, 80)])
@pytest.mark.parametrize("door", DOORS)
async def test_many_idle_connections_do_not_affect_the_other_door(
    door: str, descriptors: int, count: int, tmp_path: Path
) -> None:
    [other] = set(DOORS) - {door}
    async with few_descriptors_process(tmp_path / "log", descriptors) as process:
        with idle_connections(process.doors[door]) as idle:
            adding = asyncio.create_task(idle.add(count))
            responses = 0
            while not adding.done() or responses < 50:
                assert await ask(process.doors[other]) == OK
                responses += 1
            await adding
            await until(lambda: idle.open <= descriptors // 3)
            await wait_for_response(process.doors[door])  # while they stay
            assert idle.open > descriptors // 4
        await wait_for_response(process.doors[door])
        assert await ask(process.doors[other]) == OK
        assert await process.command("free") == descriptors
        warning = f"the {door} door has {descriptors // 3} connections"
        assert sum(warning in each for each in process.log) <= 2  # a minute may have passed


@pytest.mark.parametrize("door", DOORS)
async def test_without_free_descriptors_connections_are_closed(door: str, tmp_path: Path) -> None:
    async with few_descriptors_process(tmp_path / "log", 200) as process:
        assert await ask(process.doors[door]) == OK
        refused = 0
        async with asyncio.timeout(QUICK):
            while refused < 50:
                await process.command("fill")  # each time: descriptors that were closed meanwhile are free
                refused += await ask(process.doors[door]) == b""
        with idle_connections(process.doors[door]) as idle:
            await idle.add(100)
            await until(lambda: idle.open == 0)
        await process.command("free")
        await wait_for_response(process.doors[door])
        warning = f"the {door} door can't accept connections: Too many open files"
        # Not more often, but a minute may have passed. After half a minute, there are warnings of other parts.
        assert 1 <= sum(warning in each for each in process.log) <= 2


class FailingListener(socket.socket):
    """A listener whose `accept` raises each of `errors` once."""

    errors: list[int]
    tries: int

    def accept(self) -> tuple[socket.socket, Any]:
        type(self).tries += 1
        if self.errors:
            raise OSError(self.errors.pop(), "as the kernel says")
        return super().accept()


async def test_after_an_error_of_accept_it_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    mirror = Mirror(MemoryStore(), MemoryRouter())
    with FailingListener(socket.AF_INET) as listening:
        listening.bind(("127.0.0.1", 0))
        # The last ones are of a connection, not of this host: the next one is accepted at once.
        FailingListener.tries, FailingListener.errors = (
            0,
            [errno.ECONNABORTED, errno.EPROTO, errno.ENOMEM, errno.ENOBUFS],
        )
        async with mirror, serve(mirror, local=listening) as serving:
            assert await ask(serving.local_addresses[0]) == OK
            assert FailingListener.tries >= 5
    assert caplog.messages == ["the local door can't accept connections: No buffer space available"]


async def test_connections_above_the_limit_are_closed_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async with served_host(limits=Limits(connections=3)) as host:
        address = host.address("local")
        with open_request(address, ZEROS_PATH), open_request(address, ZEROS_PATH), open_request(address, ZEROS_PATH):
            await until(lambda: len(host.store.opened) == 3)
            for _ in range(3):
                assert await ask(address) == b""
            assert host.mirror.metrics.limited.family().samples["connections",] == 3
            assert await ask(host.address("peer")) == OK
        assert "the local door has 3 connections, its maximum; others are closed" in caplog.text
        await wait_for_response(address)


async def test_a_new_connection_replaces_the_longest_idle_one() -> None:
    async with served_host(limits=Limits(connections=3)) as host:
        address = host.address("local")
        with (
            idle_connections(address) as first,
            idle_connections(address) as others,
            open_request(address, ZEROS_PATH) as working,
        ):
            await first.add(1)
            await others.add(1)
            await until(lambda: len(host.store.opened) == 1)
            await wait_for_response(address)
            await until(lambda: first.open == 0)
            assert others.open == 1
            assert working.fileno() >= 0
            assert not host.store.opened[0].closed.is_set()


async def test_an_unfinished_handshake_makes_room_for_new_connections(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    async with served_host(limits=Limits(connections=3), peer_ssl=certificate.server_context()) as host:
        with idle_connections(host.address("peer")) as silent:
            await silent.add(3)
            name, _, port = host.address("peer").rpartition(":")

            async def connects() -> bool:
                try:
                    context = certificate.client_context()
                    reader, writer = await asyncio.open_connection(name, int(port), ssl=context)
                except OSError:
                    return False
                writer.write(REQUEST)
                answered = await reader.read(len(OK))
                writer.transport.abort()
                return answered == OK

            async with asyncio.timeout(QUICK):
                while not await connects():  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.05)
            assert silent.open < 3


@pytest.mark.parametrize("demands_certificate", [True, False])
async def test_a_handshake_that_takes_too_long_is_ended_and_counted(demands_certificate: bool, tmp_path: Path) -> None:
    context = make_certificate(tmp_path).server_context()
    context.verify_mode = ssl.CERT_REQUIRED if demands_certificate else ssl.CERT_NONE
    async with served_host(limits=Limits(header_timeout=0.1), peer_ssl=context) as host:
        with idle_connections(host.address("peer")) as silent:
            await silent.add(2)
            await until(lambda: host.mirror.metrics.limited.value("header_timeout") == 2)
            await until(lambda: silent.open == 0)


@pytest.mark.parametrize(
    ("soft", "most"), [(1024, 341), (90, 30), (2, 1), (1 << 20, 1024), (resource.RLIM_INFINITY, 1024)]
)
def test_a_door_uses_at_most_a_third_of_the_descriptors(soft: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def limit(_: int) -> tuple[int, int]:
        return soft, soft

    monkeypatch.setattr(resource, "getrlimit", limit)
    assert max_connections(Limits()) == most
