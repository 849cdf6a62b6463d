"""A stranger's store or resolver that fails or hangs does not make a pull worse: the runtime is sent upstream."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.doors.house import House
from tests.support.events import until
from typing_extensions import override

from peili.mirror import Descriptor, Digest, Limits, Mirror, Peer, Reference, Resolver
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


class FailingResolver(Resolver):
    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        raise RuntimeError("a bug")


async def status_of(mirror: Mirror, path: str) -> int:
    async with mirror, httpx.AsyncClient(transport=httpx.ASGITransport(mirror.local), base_url="http://h") as client:
        return (await client.get(path)).status_code


@pytest.mark.parametrize("store", [FailingStore, HangingStore])
async def test_a_store_that_fails_or_hangs_is_404(store: type[MemoryStore]) -> None:
    mirror = Mirror(store(), MemoryRouter(), limits=Limits(first_byte_timeout=0.1))
    async with asyncio.timeout(5):
        assert await status_of(mirror, BLOB) == 404


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
