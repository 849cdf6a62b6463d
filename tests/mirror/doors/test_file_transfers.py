"""Transfers of files behave alike with each kind of server, whether Python or the kernel sends the bytes."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import random
import re
import resource
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from tests.mirror.doors.multipart_parser import parts_of
from tests.mirror.doors.served_host import open_request
from tests.mirror.doors.server_kinds import FIRST, SERVER_KINDS, Host, ServerKind
from tests.support.memory import resident
from tests.support.plain_http import plain_client
from tests.support.waiting import until

from peili.mirror import Content, Digest
from peili.mirror.doors.stored_content import TAIL

pytestmark = pytest.mark.anyio

SIZE = (12 << 20) + 12345
"""More bytes than the sockets of both sides can buffer; not a round number."""
LARGE = 200 << 20


@pytest.fixture(params=SERVER_KINDS, ids=str)
def server_kind(request: pytest.FixtureRequest) -> ServerKind:
    chosen: ServerKind = request.param
    return chosen


@pytest.fixture
def anyio_backend(server_kind: ServerKind) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": server_kind.uvloop}


@pytest.fixture(scope="module")
def data() -> bytes:
    return random.Random(4).randbytes(SIZE)


@pytest.fixture
def file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(data)
    os.utime(path, ns=(0, 0))
    return path


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A sparse file."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(LARGE)
    return path


def client_of(host: Host) -> httpx.AsyncClient:
    return plain_client(base_url=f"http://{host.address}", trust_env=False, timeout=60)


@contextmanager
def no_warnings(caplog: pytest.LogCaptureFixture, *, but: str = "\n") -> Generator[None]:
    yield
    warnings = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert not [each for each in warnings if but not in each]


async def test_a_file_arrives_unchanged_and_bypasses_python(server_kind: ServerKind, file: Path, data: bytes) -> None:
    async with server_kind.host() as host, client_of(host) as client:
        answer = await client.get(host.store.add_file(file))
        assert (answer.status_code, answer.headers["Content-Length"]) == (200, str(SIZE))
        assert answer.content == data
        read = host.store.opened[0].read
        assert (read <= TAIL + 100) if server_kind.bypasses_python else (read == FIRST + SIZE)


async def test_a_file_outside_the_page_cache_arrives_unchanged(
    server_kind: ServerKind, file: Path, data: bytes
) -> None:
    with file.open("rb") as reading:
        os.fsync(reading.fileno())
        os.posix_fadvise(reading.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    async with server_kind.host() as host, client_of(host) as client:
        assert (await client.get(host.store.add_file(file))).content == data


RANGES = {
    "bytes=1000000-11000000": slice(1_000_000, 11_000_001),
    "bytes=3-": slice(3, SIZE),
    "bytes=-70000": slice(SIZE - 70_000, SIZE),
    "bytes=5-5": slice(5, 6),
    f"bytes={SIZE - 1}-": slice(SIZE - 1, SIZE),
    f"bytes=0-{TAIL - 1}": slice(0, TAIL),
    f"bytes=0-{TAIL}": slice(0, TAIL + 1),
}


@contextmanager
def no_more_descriptors() -> Generator[Callable[[], None]]:
    """Yield a function. After its call, this process can open no more descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_without_free_descriptors_a_file_still_arrives(
    server_kind: ServerKind, file: Path, data: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with server_kind.host() as host, client_of(host) as client:
        path, opening = host.store.add_file(file), host.store.open
        with no_more_descriptors() as from_now_on:

            async def opened(digest: Digest, *, partial: bool = False) -> Content:
                content = await opening(digest, partial=partial)
                from_now_on()
                return content

            monkeypatch.setattr(host.store, "open", opened)
            # The mirror may be looking just then whether its peer door answers.
            with no_warnings(caplog, but="the peer door can't accept connections"):
                assert (await client.get(path)).content == data
        assert host.store.opened[0].read == FIRST + SIZE


@pytest.mark.parametrize("server_kind", [each for each in SERVER_KINDS if each.bypasses_python], ids=str)
async def test_a_failure_of_this_host_is_not_a_client_disconnect(
    server_kind: ServerKind, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "the disk is broken")

    async with server_kind.host() as host, client_of(host) as client:
        monkeypatch.setattr(os, "sendfile", broken)
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(host.store.add_file(file))
        await until(lambda: "the disk is broken" in caplog.text)
        assert next(each.getMessage() for each in caplog.records if each.levelno == logging.ERROR).endswith(
            ": response cut off"
        )


async def test_ranges_are_exact(server_kind: ServerKind, file: Path, data: bytes) -> None:
    async with server_kind.host() as host, client_of(host) as client:
        path = host.store.add_file(file)
        for range_header, wanted in RANGES.items():
            answer = await client.get(path, headers={"Range": range_header})
            assert answer.status_code == 206
            assert answer.headers["Content-Range"] == f"bytes {wanted.start}-{wanted.stop - 1}/{SIZE}"
            assert answer.content == data[wanted], range_header


async def test_several_ranges_are_exact(server_kind: ServerKind, file: Path, data: bytes) -> None:
    several = ["1000000-8000000", "3-5", "-70000", "9000000-9000000", "8000000-8065536"]
    wanted = [slice(1_000_000, 8_000_001), slice(3, 6), slice(SIZE - 70_000, SIZE), slice(9_000_000, 9_000_001)]
    wanted.append(slice(8_000_000, 8_065_537))
    async with server_kind.host() as host, client_of(host) as client:
        path = host.store.add_file(file)
        answer = await client.get(path, headers={"Range": f"bytes={','.join(several)}"})
        assert answer.status_code == 206
        assert answer.headers["Content-Length"] == str(len(answer.content))
        assert [(part.content_range, part.data) for part in parts_of(answer)] == [
            (f"bytes {each.start}-{each.stop - 1}/{SIZE}", data[each]) for each in wanted
        ]
        if server_kind.bypasses_python:
            assert host.store.opened[0].read < 1_000_000
        whole = await client.get(path)  # on the same connection
        assert whole.content == data


@asynccontextmanager
async def connection(host: Host) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    name, _, port = host.address.rpartition(":")
    reader, writer = await asyncio.open_connection(name, int(port))
    try:
        async with asyncio.timeout(60):
            yield reader, writer
    finally:
        writer.transport.abort()


def request(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


async def read_response(method: str, reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return the status and body of the next response on a connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = re.search(r"(?im)^content-length: (\d+)\r$", head)
    assert length, head
    body = b"" if method == "HEAD" else await reader.readexactly(int(length[1]))
    return int(head.split()[1]), body


async def test_a_connection_is_reused_after_transfers(server_kind: ServerKind, file: Path, data: bytes) -> None:
    async with server_kind.host() as host, connection(host) as (reader, writer):
        path = host.store.add_file(file)
        for method in ("GET", "HEAD", "GET", "HEAD", "GET"):
            writer.write(request(method, path))
            assert await read_response(method, reader) == (200, b"" if method == "HEAD" else data)


async def test_pipelined_requests_are_answered_in_order(server_kind: ServerKind, file: Path, data: bytes) -> None:
    async with server_kind.host() as host, connection(host) as (reader, writer):
        path = host.store.add_file(file)
        whole, head, base = request("GET", path), request("HEAD", path), request("GET", "/v2/")
        writer.write(whole + head + request("GET", path, "Range: bytes=7-3000006") + base + whole)
        assert await read_response("GET", reader) == (200, data)
        assert await read_response("HEAD", reader) == (200, b"")
        assert await read_response("GET", reader) == (206, data[7:3000007])
        assert await read_response("GET", reader) == (200, b"{}")
        assert await read_response("GET", reader) == (200, data)


async def test_an_http_1_0_client_sees_the_end_by_close(server_kind: ServerKind, file: Path, data: bytes) -> None:
    async with server_kind.host() as host, connection(host) as (reader, writer):
        writer.write(f"GET {host.store.add_file(file)} HTTP/1.0\r\n\r\n".encode())
        assert (await reader.read(-1)).partition(b"\r\n\r\n")[2] == data


async def test_concurrent_transfers_do_not_mix(server_kind: ServerKind, file: Path, data: bytes) -> None:
    async with server_kind.host() as host, client_of(host) as client:
        path = host.store.add_file(file)
        spans = [(n * 1_000_003, SIZE - n * 70_001) for n in range(8)]
        gets = (client.get(path, headers={"Range": f"bytes={start}-{stop - 1}"}) for start, stop in spans)
        for answer, (start, stop) in zip(await asyncio.gather(*gets), spans, strict=True):
            assert answer.content == data[start:stop]


async def test_a_disconnect_closes_the_file(
    server_kind: ServerKind, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with server_kind.host() as host:
        with no_warnings(caplog):
            with open_request(host.address, host.store.add_file(file)):
                await until(lambda: len(host.store.opened) == 1)
            async with asyncio.timeout(60):
                await host.store.opened[0].closed.wait()
        async with client_of(host) as client:
            assert (await client.get("/v2/")).status_code == 200


async def test_a_disconnect_with_a_pipelined_request_closes_the_file(server_kind: ServerKind, file: Path) -> None:
    """uvicorn reads no further in that case, so that only a write shows the disconnect."""
    async with server_kind.host(reader_timeout=60) as host:
        path = host.store.add_file(file)
        async with connection(host) as (_, writer):
            writer.write(request("GET", path) + request("GET", path))
            await until(lambda: len(host.store.opened) == 1)
        async with asyncio.timeout(60):
            await host.store.opened[0].closed.wait()
            await host.shut_down()


async def count_remaining(sock: Any, received: int = 0) -> int:
    """Return how many bytes of a response remain to be read, until it ends or all of `LARGE` has arrived."""
    count = 0
    async with asyncio.timeout(60):
        try:
            while received + count < LARGE and (got := await asyncio.get_running_loop().sock_recv(sock, 1 << 20)):
                count += len(got)
        except ConnectionError:
            pass
    return count


async def test_a_stalled_client_is_cut_off(server_kind: ServerKind, file: Path) -> None:
    async with server_kind.host(reader_timeout=0.3) as host:
        with open_request(host.address, host.store.add_file(file)) as sock:
            await until(lambda: len(host.store.opened) == 1)
            async with asyncio.timeout(60):
                await host.store.opened[0].closed.wait()
            await until(lambda: host.mirror.metrics.limited.value("reader_timeout") == 1)
            assert await count_remaining(sock) < SIZE


async def test_a_slow_client_receives_everything(server_kind: ServerKind, large: Path) -> None:
    """Later clients that read nothing are cut off meanwhile."""
    async with server_kind.host(reader_timeout=1) as host:
        loop, opened, path = asyncio.get_running_loop(), host.store.opened, host.store.add_file(large)
        with open_request(host.address, path, buffer=1 << 20) as sock:
            await until(lambda: len(opened) == 1)
            received = 0
            for others in (1, 2):
                with open_request(host.address, path):
                    while len(opened) <= others or not opened[others].closed.is_set():
                        received += len(await loop.sock_recv(sock, 64 << 10))
                        await asyncio.sleep(0.01)
            assert not opened[0].closed.is_set()
            head = 1000
            assert LARGE < received + await count_remaining(sock, received) < LARGE + head


@pytest.mark.parametrize("change", ["shorter", "overwritten"])
async def test_a_file_that_changes_during_a_transfer_is_cut_off(
    server_kind: ServerKind, file: Path, change: str
) -> None:
    async with server_kind.host() as host:
        with open_request(host.address, host.store.add_file(file)) as sock:
            await until(lambda: len(host.store.opened) == 1)
            await asyncio.get_running_loop().sock_recv(sock, 100_000)
            if change == "shorter":
                os.truncate(file, SIZE - 1)
            else:
                with file.open("r+b") as writing:
                    writing.seek(SIZE - 10)
                    writing.write(b"other")
            assert await count_remaining(sock) < SIZE - TAIL


async def test_a_transfer_ends_before_the_server(server_kind: ServerKind, file: Path, data: bytes) -> None:
    async with server_kind.host(drain_timeout=20) as host, connection(host) as (reader, writer):
        writer.write(request("GET", host.store.add_file(file)))
        await until(lambda: len(host.store.opened) == 1)
        ending = asyncio.create_task(host.shut_down())
        assert await read_response("GET", reader) == (200, data)
        assert await reader.read() == b""
        async with asyncio.timeout(60):
            await ending


async def test_draining_cuts_transfers_that_take_too_long(server_kind: ServerKind, file: Path) -> None:
    async with server_kind.host() as host:
        with open_request(host.address, host.store.add_file(file)) as sock:
            await until(lambda: len(host.store.opened) == 1)
            await host.mirror.drain(0.1)
            assert host.store.opened[0].closed.is_set()
            assert await count_remaining(sock) < SIZE


@pytest.mark.parametrize(
    "server_kind", [each for each in SERVER_KINDS if not each.is_ours], ids=str, indirect=True
)  # serve() has no access log
async def test_the_access_log_is_unchanged(
    server_kind: ServerKind, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "uvicorn.access")
    async with server_kind.host() as host, client_of(host) as client:
        path = host.store.add_file(file)
        await client.get(path)
        await client.get(path, headers={"Range": "bytes=0-9"})
    lines = [each.getMessage().partition(" - ")[2] for each in caplog.records if each.name == "uvicorn.access"]
    assert lines == [f'"GET {quote(path)} HTTP/1.1" {status}' for status in (200, 206)]


async def test_a_slow_client_does_not_grow_the_memory(server_kind: ServerKind, large: Path) -> None:
    async with server_kind.host() as host:
        with open_request(host.address, host.store.add_file(large), buffer=1 << 20) as sock:
            gc.collect()
            before, received = resident(), 0
            while received < 100 << 20:
                received += len(await asyncio.get_running_loop().sock_recv(sock, 256 << 10))
            assert resident() - before < 24 << 20
