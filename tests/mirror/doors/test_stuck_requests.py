"""A plug-in that ignores that its call is cancelled: nothing can end the call, but the runtime does not wait for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

import httpx
import pytest
from tests.support.plain_http import plain_client
from typing_extensions import override

from peili.mirror import Content, Descriptor, Digest, Feed, Limits, Mirror, Reference, Upstream, Wait, Want, serve
from peili.mirror.resolvers import DeferResolver
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

LIMITS = Limits(first_byte_timeout=0.3, lookup_timeout=0.3, stall_timeout=0.3, drain_timeout=0.1, stop_timeout=0.2)
DATA = bytes(range(256)) * 16_000
BLOB = f"/v2/registry.example/demo/blobs/{Digest.of(DATA)}"
TAG = "/v2/registry.example/demo/manifests/v1"


class Obstinacy:
    """Ignores each cancellation until `go_on` is set, as a bare ``except:`` in a loop does."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def wait(self) -> None:
        while not self.go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.go_on.wait()


class ObstinateStore(MemoryStore):
    def __init__(self, obstinacy: Obstinacy) -> None:
        super().__init__()
        self._obstinacy = obstinacy

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        await self._obstinacy.wait()
        return await super().describe(digest)


class ObstinateRouter(MemoryRouter):
    def __init__(self, obstinacy: Obstinacy) -> None:
        super().__init__()
        self._obstinacy = obstinacy

    @override
    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        await self._obstinacy.wait()
        return Upstream()


class ObstinateResolver(DeferResolver):
    def __init__(self, obstinacy: Obstinacy) -> None:
        self._obstinacy = obstinacy

    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        await self._obstinacy.wait()
        return None


@contextlib.asynccontextmanager
async def serving(mirror: Mirror, obstinacy: Obstinacy) -> AsyncGenerator[httpx.AsyncClient]:
    """Yield a client of the local door. In the end, the plug-in is obstinate no longer."""
    async with (
        mirror,
        serve(mirror, local="127.0.0.1:0") as doors,
        plain_client(base_url=f"http://{doors.local_addresses[0]}", timeout=60) as client,
    ):
        try:
            yield client
        finally:
            obstinacy.go_on.set()


MIRRORS: dict[str, tuple[Callable[[Obstinacy], Mirror], str]] = {
    "ObstinateStore.describe": (lambda it: Mirror(ObstinateStore(it), MemoryRouter(), limits=LIMITS), BLOB),
    "ObstinateRouter.acquire": (lambda it: Mirror(MemoryStore(), ObstinateRouter(it), limits=LIMITS), BLOB),
    "ObstinateResolver.resolve": (
        lambda it: Mirror(MemoryStore(), MemoryRouter(), ObstinateResolver(it), limits=LIMITS),
        TAG,
    ),
}


@pytest.mark.parametrize("method", MIRRORS)
async def test_the_runtime_is_sent_upstream(method: str, caplog: pytest.LogCaptureFixture) -> None:
    obstinacy = Obstinacy()
    build, path = MIRRORS[method]
    async with serving(build(obstinacy), obstinacy) as client:
        answer = await client.get(path)
        assert answer.status_code == 404
        assert answer.json()["errors"][0]["message"] == "a plug-in of this mirror does not answer"
        assert "Obstinacy.wait (" in caplog.text  # the function that ignores it
        assert (await client.get("/v2/")).status_code == 200  # on the same connection


class ObstinateContent(Content):
    """Content that can't be read any more from the middle on."""

    def __init__(self, obstinacy: Obstinacy) -> None:
        self.size = self.available = len(DATA)
        self.complete = True
        self._obstinacy = obstinacy

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        if offset >= len(DATA) // 2:
            await self._obstinacy.wait()
        count = min(len(buffer), len(DATA) - offset)
        buffer[:count] = DATA[offset : offset + count]
        return count

    @override
    async def wait(self, past: int) -> int:
        return self.available

    @override
    async def aclose(self) -> None:
        pass


class StoreOfObstinateContent(MemoryStore):
    def __init__(self, obstinacy: Obstinacy) -> None:
        super().__init__()
        self.add(DATA)
        self._obstinacy = obstinacy

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        return ObstinateContent(self._obstinacy)


async def test_a_response_that_has_started_is_cut_off() -> None:
    obstinacy = Obstinacy()
    mirror = Mirror(StoreOfObstinateContent(obstinacy), MemoryRouter(), limits=LIMITS)
    async with serving(mirror, obstinacy) as client:
        with pytest.raises(httpx.TransportError):
            await client.get(BLOB)
        assert (await client.get("/v2/")).status_code == 200
