"""A store that hangs or fails in the middle of a body: the response is cut there, and the log blames the store and not
the client.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from tests.mirror.doors.in_memory_host import client_for
from tests.mirror.doors.server_kinds import SERVER_KINDS, ServerKind
from tests.support.plain_http import plain_client
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Aborted, Content, Descriptor, Digest, Limits, Mirror, serve
from peili.mirror.content import files as filecontent
from peili.mirror.oci.references import OCTET_STREAM
from peili.routers.memory import MemoryNetwork, MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

DATA = random.Random(7).randbytes(3 << 20)
GOOD = 1 << 20
"""Bytes that are read before the failure."""
PATH = f"/v2/registry.example/demo/blobs/{Digest.of(DATA)}"
FOREIGN = (
    ConnectionResetError("of the store's"),
    TimeoutError("of the store's"),
    LookupError("of the store's"),
    asyncio.CancelledError("of the store's, which nobody has cancelled"),
    BaseExceptionGroup("of the store's", [asyncio.CancelledError()]),
)


class Breaking(Content):
    """Content that hangs or raises `outcome` after `GOOD` bytes, or when it is closed."""

    def __init__(self, outcome: BaseException | None, *, closing: bool = False) -> None:
        self.size = self.available = len(DATA)
        self.complete = True
        self.closed = False
        self._outcome = outcome
        self._closing = closing

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        count = len(buffer) if self._closing else min(len(buffer), GOOD - offset)
        if count > 0:
            buffer[:count] = DATA[offset : offset + count]
            return count
        if self._outcome is None:
            await asyncio.Event().wait()
            raise AssertionError
        raise self._outcome

    @override
    async def wait(self, past: int) -> int:
        return self.available

    @override
    async def aclose(self) -> None:
        self.closed = True
        if self._closing and self._outcome is not None:
            raise self._outcome


class BreakingStore(MemoryStore):
    """A store that opens `content`, or raises it if it is an exception."""

    def __init__(self, content: Breaking | BaseException) -> None:
        super().__init__()
        self._content = content

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        return Descriptor(OCTET_STREAM, digest, len(DATA))

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        if isinstance(self._content, BaseException):
            raise self._content
        return self._content


@pytest.fixture(params=SERVER_KINDS, ids=str)
def server_kind(request: pytest.FixtureRequest) -> ServerKind:
    chosen: ServerKind = request.param
    return chosen


@pytest.fixture
def anyio_backend(server_kind: ServerKind) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": server_kind.uvloop}


async def cut(address: str, path: str) -> bytes:
    """Return what arrives of a response until its connection is closed."""
    arrived = bytearray()

    async def take(answer: httpx.Response) -> None:
        async for piece in answer.aiter_raw():
            arrived.extend(piece)

    url = f"http://{address}{path}"
    async with plain_client(trust_env=False, timeout=20) as client, client.stream("GET", url) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            await take(answer)
    return bytes(arrived)


def limited(mirror: Mirror) -> dict[str, float]:
    """Return the limits that took effect, with their counts."""
    (family,) = (each for each in mirror.figures() if each.name == "peili_limited_total")
    return {limit: count for (limit,), count in family.samples.items() if isinstance(count, float | int) and count}


@pytest.mark.parametrize("outcome", FOREIGN, ids=lambda each: type(each).__name__)
async def test_an_error_of_the_store_is_not_a_client_disconnect(
    server_kind: ServerKind, outcome: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "peili")
    content = Breaking(outcome)
    mirror = Mirror(BreakingStore(content), MemoryRouter())
    async with mirror, server_kind.serve(mirror) as (address, _):
        arrived = await cut(address, PATH)
        await until(lambda: "cut off: the store's read at byte" in caplog.text)
        assert arrived == DATA[: len(arrived)]
        assert len(arrived) <= GOOD
        assert f"{Digest.of(DATA)}: the store's read at byte" in caplog.text
        assert "of the store's" in caplog.text  # its traceback
        assert "client disconnected" not in caplog.text
        assert limited(mirror) == {}
        assert content.closed


@pytest.mark.parametrize("outcome", [*FOREIGN, Aborted("it shrank"), None], ids=lambda each: type(each).__name__)
async def test_short_content_is_read_before_the_response_starts(
    server_kind: ServerKind, outcome: Exception | None
) -> None:
    mirror = Mirror(BreakingStore(Breaking(outcome)), MemoryRouter(), limits=Limits(first_byte_timeout=0.2))
    async with (
        mirror,
        server_kind.serve(mirror) as (address, _),
        plain_client(trust_env=False, timeout=20) as client,
    ):

        async def ask(first: int, last: int) -> httpx.Response:
            return await client.get(f"http://{address}{PATH}", headers={"Range": f"bytes={first}-{last}"})

        whole = await ask(GOOD - 200, GOOD - 101)
        assert (whole.status_code, whole.content) == (206, DATA[GOOD - 200 : GOOD - 100])
        assert (await ask(GOOD - 100, GOOD + 99)).status_code == 404  # no peer has it: the runtime goes upstream


async def test_a_hanging_read_cuts_the_response_and_is_counted(
    server_kind: ServerKind, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "peili")
    content = Breaking(None)
    mirror = Mirror(BreakingStore(content), MemoryRouter(), limits=Limits(stall_timeout=0.2))
    async with mirror, server_kind.serve(mirror) as (address, _):
        async with asyncio.timeout(60):
            arrived = await cut(address, PATH)
        await until(lambda: f"cut off: the store's read at byte {GOOD} did not return in time" in caplog.text)
        assert arrived == DATA[: len(arrived)]
        assert "client disconnected" not in caplog.text
        assert limited(mirror) == {"stall_timeout": 1}
        assert content.closed


@contextmanager
def stuck_disk(monkeypatch: pytest.MonkeyPatch, behind: int) -> Generator[threading.Event]:
    """Simulate an empty page cache and a disk that does not deliver bytes after offset `behind`.

    The disk continues when the yielded event is set, or at the end of the context.
    """
    go_on = threading.Event()
    real = os.pread

    def slow(fd: int, size: int, offset: int) -> bytes:
        if offset + size > behind:
            assert go_on.wait(100)
        return real(fd, size, offset)

    with monkeypatch.context() as patched:
        patched.setattr(filecontent, "_NOWAIT", 0)
        patched.setattr(os, "pread", slow)
        try:
            yield go_on
        finally:
            go_on.set()


async def test_after_a_hanging_disk_the_runtime_fetches_the_rest(
    server_kind: ServerKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(8).randbytes(12 << 20)
    file = tmp_path / "blob"
    file.write_bytes(data)
    async with server_kind.host(stall_timeout=0.2) as host:
        path = host.store.add_file(file)
        with stuck_disk(monkeypatch, behind=9 << 20) as go_on:
            async with asyncio.timeout(60):
                arrived = await cut(host.address, path)
            assert arrived == data[: len(arrived)]
            assert limited(host.mirror) == {"stall_timeout": 1}
            go_on.set()
            async with plain_client(trust_env=False) as client:
                rest = await client.get(f"http://{host.address}{path}", headers={"Range": f"bytes={len(arrived)}-"})
            assert rest.status_code == 206
            assert arrived + rest.content == data
        await until(lambda: all(each.closed.is_set() and each.fileno() is None for each in host.store.opened))


@pytest.mark.parametrize("server_kind", SERVER_KINDS[:1], ids=str)
async def test_an_error_of_aclose_does_not_harm_the_response(
    server_kind: ServerKind, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "peili")
    mirror = Mirror(BreakingStore(Breaking(ConnectionResetError("of the store's"), closing=True)), MemoryRouter())
    async with mirror, server_kind.serve(mirror) as (address, _), plain_client(trust_env=False) as client:
        for _ in range(2):
            assert (await client.get(f"http://{address}{PATH}")).content == DATA
        await until(lambda: caplog.text.count("the store's aclose failed") == 2)
        assert "client disconnected" not in caplog.text


@pytest.mark.parametrize("server_kind", SERVER_KINDS[:1], ids=str)
@pytest.mark.parametrize("outcome", FOREIGN, ids=lambda each: type(each).__name__)
async def test_if_open_fails_the_content_comes_from_peers(
    server_kind: ServerKind, outcome: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    network, store = MemoryNetwork(), MemoryStore()
    store.add(DATA)
    other = Mirror(store, MemoryRouter(network))
    mirror = Mirror(BreakingStore(outcome), MemoryRouter(network))
    async with (
        other,
        serve(other, local="127.0.0.1:0", peer="127.0.0.1:0"),
        mirror,
        server_kind.serve(mirror) as (address, _),
    ):
        await until(
            lambda: Digest.of(DATA) in network.holdings[other.identity.id] and other.identity.id in network.hosts
        )
        async with plain_client(trust_env=False) as client:
            assert (await client.get(f"http://{address}{PATH}")).content == DATA
        async with client_for(mirror.peer) as peer:
            assert (await peer.get(PATH)).status_code == 503
        assert caplog.text.count(f"{Digest.of(DATA)}: the store failed") == 2
        assert limited(mirror) == {}


class Miscounting(Breaking):
    """Content whose reads return `outcome` once `good` bytes were read."""

    def __init__(self, outcome: object, good: int) -> None:
        super().__init__(None)
        self._returned = outcome
        self._good = good

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        if offset < self._good:
            count = min(len(buffer), self._good - offset)
            buffer[:count] = DATA[offset : offset + count]
            return count
        return cast("int", self._returned)


@pytest.mark.parametrize("server_kind", SERVER_KINDS[:1], ids=str)
@pytest.mark.parametrize("good", [0, GOOD])
@pytest.mark.parametrize("outcome", [-5, 1 << 40, None, b"the bytes"], ids=str)
async def test_a_wrong_count_of_bytes_neither_shifts_the_body_nor_stops_the_loop(
    server_kind: ServerKind, outcome: object, good: int, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = Mirror(BreakingStore(Miscounting(outcome, good)), MemoryRouter())
    async with mirror, server_kind.serve(mirror) as (address, _):
        if good:
            assert await cut(address, PATH) == DATA[:good]
        else:
            async with plain_client(trust_env=False, timeout=20) as client:
                assert (await client.get(f"http://{address}{PATH}")).status_code == 404
    assert f"Miscounting.readinto returned {outcome!r}" in caplog.text


class Misfiled(Breaking):
    """Content whose file descriptor is wrong."""

    def __init__(self, outcome: object) -> None:
        super().__init__(LookupError(), closing=True)
        self._returned = outcome

    @override
    def fileno(self) -> int | None:
        if isinstance(self._returned, BaseException):
            raise self._returned
        return cast("int", self._returned)

    @override
    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize("server_kind", SERVER_KINDS, ids=str)
@pytest.mark.parametrize("outcome", [-1, "3", LookupError("a bug"), asyncio.CancelledError()], ids=repr)
async def test_content_with_a_wrong_file_descriptor_is_read_instead(
    server_kind: ServerKind, outcome: object, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = Mirror(BreakingStore(Misfiled(outcome)), MemoryRouter())
    async with mirror, server_kind.serve(mirror) as (address, _), plain_client(trust_env=False, timeout=20) as client:
        assert (await client.get(f"http://{address}{PATH}")).content == DATA
    assert caplog.text.count(f"{Digest.of(DATA)}: the store's fileno failed") == 1


@pytest.mark.parametrize("server_kind", SERVER_KINDS[:1], ids=str)
async def test_content_whose_descriptor_is_a_pipe_is_read_instead(
    server_kind: ServerKind, caplog: pytest.LogCaptureFixture
) -> None:
    ends = os.pipe()
    try:
        mirror = Mirror(BreakingStore(Misfiled(ends[0])), MemoryRouter())
        async with mirror, server_kind.serve(mirror) as (address, _), plain_client(trust_env=False) as client:
            assert (await client.get(f"http://{address}{PATH}")).content == DATA
        assert f"Misfiled.fileno returned {ends[0]}, which is not a regular file" in caplog.text
    finally:
        for each in ends:
            os.close(each)
