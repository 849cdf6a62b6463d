"""A plug-in that fails or hangs does not make a pull worse: the runtime goes upstream."""

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
from tests.mirror.doors.in_memory_host import InMemoryHost, client_for
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import (
    Content,
    Descriptor,
    Digest,
    Limits,
    Mirror,
    NotFound,
    Peer,
    Reference,
    Resolver,
    StoreUnavailable,
)
from peili.mirror.content import files as filecontent
from peili.mirror.content.files import FileContent
from peili.mirror.oci.references import OCTET_STREAM
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


class UncancellableStore(HangingOnOpening):
    """A store that ignores a cancellation, and opens the file at `path` when `go_on` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.was_asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self._path = path

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        self.was_asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await self.go_on.wait()
        await self.go_on.wait()
        return await FileContent.open(self._path)


class StuckStore(HangingOnOpening):
    """A store with a file whose disk does not answer."""

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


def count_open(path: Path) -> int:
    """Return how often the file at `path` is open in this process."""

    def is_it(link: Path) -> bool:
        with contextlib.suppress(OSError):
            return link.readlink() == path
        return False

    return sum(map(is_it, Path("/proc/self/fd").iterdir()))


async def metrics_of(mirror: Mirror) -> str:
    async with client_for(mirror.ops) as client:
        return (await client.get("/metrics")).text


async def status_of(mirror: Mirror, path: str) -> int:
    async with (
        mirror,
        httpx.AsyncClient(transport=httpx.ASGITransport(mirror.local), base_url="http://localhost") as client,
    ):
        return (await client.get(path)).status_code


@pytest.mark.parametrize("store", [FailingStore, HangingStore, HangingOnOpening])
async def test_a_failing_or_hanging_store_is_404(store: type[MemoryStore]) -> None:
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
async def test_a_hanging_store_is_503_at_the_peer_door(store: type[MemoryStore], path: str) -> None:
    mirror = Mirror(store(), MemoryRouter(), limits=Limits(first_byte_timeout=0.1))
    async with asyncio.timeout(60), mirror, client_for(mirror.peer) as client:
        assert (await client.get(path)).status_code == 503
        assert 'peili_limited_total{limit="first_byte_timeout"} 1.0' in (await metrics_of(mirror))


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(bytes(1000))
    return path


async def test_a_blocked_event_loop_is_not_a_late_store(blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, real = asyncio.get_running_loop(), os.open

    def meanwhile(path: str | Path, flags: int, **others: Any) -> int:
        if path == blob:
            loop.call_soon_threadsafe(time.sleep, 1)
        return real(path, flags, **others)

    monkeypatch.setattr(filecontent, "_NOWAIT", 0)  # nothing is in the page cache: its bytes take a thread, too
    monkeypatch.setattr(os, "open", meanwhile)
    mirror = Mirror(StuckStore(blob), MemoryRouter(), limits=Limits(first_byte_timeout=0.4))
    async with mirror, client_for(mirror.local) as client:
        assert (await client.get(BLOB)).status_code == 200


async def test_a_thread_stuck_in_a_read_is_abandoned_and_leaks_nothing(
    blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = threading.Event(), threading.Event()

    def stuck(*_: object) -> bytes:
        started.set()
        assert go_on.wait(60)
        return b"1"

    mirror = Mirror(StuckStore(blob), MemoryRouter(), limits=Limits(first_byte_timeout=0.2))
    async with mirror, client_for(mirror.local) as client:
        with monkeypatch.context() as patched:
            patched.setattr(filecontent, "_NOWAIT", 0)  # nothing is in the page cache
            patched.setattr(os, "pread", stuck)
            try:
                async with asyncio.timeout(60):
                    assert (await client.get(BLOB)).status_code == 404
                await until(started.is_set)
                assert count_open(blob) == 1  # the thread still has it
            finally:
                go_on.set()
        await until(lambda: count_open(blob) == 0)


async def test_a_disconnect_during_a_stuck_open_leaks_nothing(blob: Path) -> None:
    store = UncancellableStore(blob)
    mirror = Mirror(store, MemoryRouter())
    async with mirror, client_for(mirror.local) as client:
        asking = asyncio.create_task(client.get(BLOB))
        await store.was_asked.wait()
        asking.cancel()
        async with asyncio.timeout(60):
            await asyncio.wait([asking])
        store.go_on.set()
        await mirror.drain(30)
        assert count_open(blob) == 0


async def test_content_opened_too_late_is_closed(blob: Path) -> None:
    store = UncancellableStore(blob)
    mirror = Mirror(store, MemoryRouter(), limits=Limits(first_byte_timeout=0.1))
    async with asyncio.timeout(60), mirror, client_for(mirror.local) as client:
        assert (await client.get(BLOB)).status_code == 404
        store.go_on.set()
        await mirror.drain(30)
        assert count_open(blob) == 0


class TimingOutStore(MemoryStore, Resolver):
    """A store that raises its own TimeoutError."""

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        raise TimeoutError("a bug")

    @override
    async def resolve(self, reference: Reference) -> Descriptor:
        raise TimeoutError("a bug")


@pytest.mark.parametrize("path", [BLOB, "/v2/registry.example/demo/manifests/v1"])
@pytest.mark.parametrize("door", ["local", "peer"])
async def test_a_timeout_error_of_the_plugin_itself_is_a_failure(
    door: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = TimingOutStore()
    mirror = Mirror(plugin, MemoryRouter(), plugin)
    async with mirror, client_for(getattr(mirror, door)) as client:
        assert (await client.get(path)).status_code == 404
        assert 'peili_limited_total{limit="first_byte_timeout"} 0.0' in (await metrics_of(mirror))
    assert "TimeoutError: a bug" in caplog.text


async def test_a_failing_resolver_is_404_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    mirror = Mirror(MemoryStore(), MemoryRouter(), FailingResolver())
    assert await status_of(mirror, "/v2/registry.example/demo/manifests/v1") == 404
    assert "the resolver failed" in caplog.text


async def test_a_repository_name_may_begin_with_router() -> None:
    host = InMemoryHost()
    host.store.tag(Reference("registry.example", "router/x", "v1"), host.manifest)
    app = Starlette(routes=[Mount("/v2", host.mirror.peer)])
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    async with host.mirror, httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/v2/router/x/tags/list?ns=registry.example")
        assert answer.json() == {"name": "router/x", "tags": ["v1"]}


async def test_an_unreachable_own_peer_door_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    mirror = Mirror(MemoryStore(), MemoryRouter(), identity=Peer("me", ("http://127.0.0.1:1",)))
    with caplog.at_level(logging.WARNING):
        async with mirror:
            await until(lambda: "not advertised to peers" in caplog.text)
    assert "http://127.0.0.1:1" in caplog.text


@pytest.mark.parametrize(("error", "status"), [(NotFound, 404), (StoreUnavailable, 503), (RuntimeError, 404)])
async def test_other_hosts_are_not_told_a_path_of_this_host(error: type[Exception], status: int) -> None:
    class Telling(MemoryStore):
        @override
        async def describe(self, digest: Digest) -> Descriptor:
            raise error("/var/lib/secret/blobs can't be read")

        @override
        async def resolve(self, reference: Reference) -> Descriptor:
            raise error("/var/lib/secret/index.json can't be read")

    digest = Digest.of(b"of this host")
    mirror = Mirror(Telling(), MemoryRouter())
    async with mirror, client_for(mirror.peer) as client:
        for path in (f"blobs/{digest}", f"manifests/{digest}", "manifests/v1"):
            response = await client.get(f"/v2/registry.example/demo/{path}")
            assert response.status_code == status
            assert "secret" not in response.text
