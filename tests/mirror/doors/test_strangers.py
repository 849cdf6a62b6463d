"""A stranger's store or resolver that fails or hangs does not make a pull worse: the runtime is sent upstream."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.mirror.doors.house import House, visitor
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Content, Descriptor, Digest, Limits, Mirror, Peer, Reference, Resolver
from peili.mirror.content import files as filecontent
from peili.mirror.content.files import FileContent
from peili.mirror.oci.media_types import OCTET_STREAM
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

BLOB = f"/v2/registry.example/demo/blobs/{Digest.of(b'a blob')}"


class FailingStore(MemoryStore):
    @override
    async def describe(self, digest: Digest) -> Descriptor:
        raise RuntimeError("a bug")


class HangingStore(MemoryStore):
    @override
    async def describe(self, digest: Digest) -> Descriptor:
        await asyncio.Event().wait()
        raise AssertionError


class HangingOnOpening(MemoryStore):
    @override
    async def describe(self, digest: Digest) -> Descriptor:
        return Descriptor(OCTET_STREAM, digest, 1000)

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        await asyncio.Event().wait()
        raise AssertionError


class DeafStore(HangingOnOpening):
    """Takes no notice of a cancellation, and opens the file at `path` all the same, when `go_on` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self._path = path

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        self.asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await self.go_on.wait()
        await self.go_on.wait()
        return await FileContent.open(self._path)


class StuckStore(HangingOnOpening):
    """Has a file whose disk does not answer."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        return await FileContent.open(self._path)


class HangingOnImages(MemoryStore):
    @override
    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        await asyncio.Event().wait()
        raise AssertionError


class FailingResolver(Resolver):
    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        raise RuntimeError("a bug")


def opened(path: Path) -> int:
    """How often the file at `path` is open in this process."""

    def is_it(link: Path) -> bool:
        with contextlib.suppress(OSError):
            return link.readlink() == path
        return False

    return sum(map(is_it, Path("/proc/self/fd").iterdir()))


async def metrics_of(mirror: Mirror) -> str:
    async with visitor(mirror.ops) as client:
        return (await client.get("/metrics")).text


async def status_of(mirror: Mirror, path: str) -> int:
    async with mirror, httpx.AsyncClient(transport=httpx.ASGITransport(mirror.local), base_url="http://h") as client:
        return (await client.get(path)).status_code


@pytest.mark.parametrize("store", [FailingStore, HangingStore, HangingOnOpening])
async def test_a_store_that_fails_or_hangs_is_404(store: type[MemoryStore]) -> None:
    mirror = Mirror(store(), MemoryRouter(), limits=Limits(first_byte_timeout=0.1))
    async with asyncio.timeout(60):
        assert await status_of(mirror, BLOB) == 404


@pytest.mark.parametrize(
    ("store", "path"),
    [
        (HangingStore, BLOB),
        (HangingOnOpening, BLOB),
        (HangingOnImages, "/v2/registry.example/demo/tags/list"),
    ],
)
async def test_a_peer_is_told_to_ask_again_where_the_store_hangs(store: type[MemoryStore], path: str) -> None:
    mirror = Mirror(store(), MemoryRouter(), limits=Limits(first_byte_timeout=0.1))
    async with asyncio.timeout(60), mirror, visitor(mirror.peer) as client:
        assert (await client.get(path)).status_code == 503
        assert 'peili_limited_total{limit="first_byte_timeout"} 1.0' in (await metrics_of(mirror))


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(bytes(1000))
    return path


async def test_a_store_is_not_late_because_the_loop_stood_still(blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, real = asyncio.get_running_loop(), os.open

    def meanwhile(path: str | Path, flags: int, **others: Any) -> int:
        if path == blob:
            loop.call_soon_threadsafe(time.sleep, 1)
        return real(path, flags, **others)

    monkeypatch.setattr(filecontent, "_NOWAIT", 0)  # nothing is in the page cache: its bytes take a thread, too
    monkeypatch.setattr(os, "open", meanwhile)
    mirror = Mirror(StuckStore(blob), MemoryRouter(), limits=Limits(first_byte_timeout=0.4))
    async with mirror, visitor(mirror.local) as client:
        assert (await client.get(BLOB)).status_code == 200


async def test_a_thread_that_is_stuck_in_reading_is_not_waited_for_and_leaks_nothing(
    blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = threading.Event(), threading.Event()

    def stuck(*_: object) -> bytes:
        started.set()
        assert go_on.wait(60)
        return b"1"

    mirror = Mirror(StuckStore(blob), MemoryRouter(), limits=Limits(first_byte_timeout=0.2))
    async with mirror, visitor(mirror.local) as client:
        with monkeypatch.context() as patched:
            patched.setattr(filecontent, "_NOWAIT", 0)  # nothing is in the page cache
            patched.setattr(os, "pread", stuck)
            try:
                async with asyncio.timeout(60):
                    assert (await client.get(BLOB)).status_code == 404
                await until(started.is_set)
                assert opened(blob) == 1  # the thread still has it
            finally:
                go_on.set()
        await until(lambda: opened(blob) == 0)


async def test_a_reader_that_leaves_a_stuck_store_leaks_nothing(blob: Path) -> None:
    store = DeafStore(blob)
    mirror = Mirror(store, MemoryRouter())
    async with mirror, visitor(mirror.local) as client:
        asking = asyncio.create_task(client.get(BLOB))
        await store.asked.wait()
        asking.cancel()
        async with asyncio.timeout(60):
            await asyncio.wait([asking])
        store.go_on.set()
        await mirror.drain(30)
        assert opened(blob) == 0


async def test_what_a_deaf_store_opens_too_late_is_closed(blob: Path) -> None:
    store = DeafStore(blob)
    mirror = Mirror(store, MemoryRouter(), limits=Limits(first_byte_timeout=0.1))
    async with asyncio.timeout(60), mirror, visitor(mirror.local) as client:
        assert (await client.get(BLOB)).status_code == 404
        store.go_on.set()
        await mirror.drain(30)
        assert opened(blob) == 0


class TimedOut(MemoryStore, Resolver):
    """Has waited for something of its own."""

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        raise TimeoutError("a bug")

    @override
    async def resolve(self, reference: Reference) -> Descriptor:
        raise TimeoutError("a bug")


@pytest.mark.parametrize("path", [BLOB, "/v2/registry.example/demo/manifests/v1"])
@pytest.mark.parametrize("door", ["local", "peer"])
async def test_a_timeout_of_its_own_is_a_failure_like_others(
    door: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    it = TimedOut()
    mirror = Mirror(it, MemoryRouter(), it)
    async with mirror, visitor(getattr(mirror, door)) as client:
        assert (await client.get(path)).status_code == 404
        assert 'peili_limited_total{limit="first_byte_timeout"} 0.0' in (await metrics_of(mirror))
    assert "TimeoutError: a bug" in caplog.text


async def test_a_resolver_that_fails_is_404_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    mirror = Mirror(MemoryStore(), MemoryRouter(), FailingResolver())
    assert await status_of(mirror, "/v2/registry.example/demo/manifests/v1") == 404
    assert "the resolver failed" in caplog.text


async def test_a_repository_may_begin_with_the_word_router() -> None:
    host = House()
    host.store.tag(Reference("registry.example", "router/x", "v1"), host.manifest)
    app = Starlette(routes=[Mount("/v2", host.mirror.peer)])
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    async with host.mirror, httpx.AsyncClient(transport=transport, base_url="http://h") as client:
        answer = await client.get("/v2/router/x/tags/list?ns=registry.example")
        assert answer.json() == {"name": "router/x", "tags": ["v1"]}


async def test_a_host_that_can_t_reach_itself_says_why_it_is_not_announced(caplog: pytest.LogCaptureFixture) -> None:
    mirror = Mirror(MemoryStore(), MemoryRouter(), identity=Peer("me", ("http://127.0.0.1:1",)))
    with caplog.at_level(logging.WARNING):
        async with mirror:
            await until(lambda: "not announced to peers" in caplog.text)
    assert "http://127.0.0.1:1" in caplog.text
