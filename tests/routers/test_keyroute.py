"""What a membership router answers to other hosts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import quote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.routers.neighbours import entered, holders, served
from typing_extensions import override

from peili.mirror import Descriptor, Digest, Limits, Reference, Selection, StoreUnavailable
from peili.mirror.peer_api.keys import key_path
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

TAG = Reference("docker.io", "library/redis", "7")
LATEST = Reference("docker.io", "library/redis", "latest")
UNKNOWN = Digest.of(b"unknown")


class Down(MemoryStore):
    @override
    async def describe(self, digest: Digest) -> Descriptor:
        raise StoreUnavailable("down")


class Hanging(MemoryStore):
    """Does not answer; `waiting` is how many wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        never: asyncio.Future[Descriptor] = asyncio.get_running_loop().create_future()
        self.waiting += 1
        try:
            return await never
        finally:
            self.waiting -= 1


@asynccontextmanager
async def asking(router: StaticRouter) -> AsyncGenerator[httpx.AsyncClient, None]:
    app = Starlette(routes=[Mount("/_router", routes=router.routes())])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://peer") as client:
        yield client


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    content = store.add(b"content")
    for reference in (TAG, LATEST):
        store.tag(reference, content)
    store.begin(Digest.of(b"half of it"), 10)
    return store


@pytest.mark.parametrize("key", [Digest.of(b"content"), TAG], ids=str)
async def test_a_host_says_what_its_store_has(store: MemoryStore, key: Digest | Reference) -> None:
    router = StaticRouter([])
    async with entered(router, store=store), asking(router) as client:
        answer = await client.head(key_path(key))
    assert answer.status_code == 200
    assert answer.headers["Docker-Content-Digest"] == Digest.of(b"content")
    assert answer.headers["Peili-Complete"] == "true"
    assert answer.headers["Peili-Size"] == "7"


@pytest.mark.parametrize(
    ("key", "status"),
    [
        (UNKNOWN, 404),
        (Digest.of(b"half of it"), 404),
        (Reference("docker.io", "library/redis", "8"), 404),
        (LATEST, 404),  # excluded
        ("sha256:123", 400),
        ("redis:7", 400),
        ("docker.io/../x:7", 400),
        ("", 400),
    ],
    ids=str,
)
async def test_a_host_says_no(store: MemoryStore, key: str | Digest | Reference, status: int) -> None:
    router = StaticRouter([])
    selection = Selection(exclude=[":latest$"])
    async with entered(router, store=store, selection=selection), asking(router) as client:
        answer = await client.head(f"/_router/keys/{quote(str(key), safe='/:')}")
    assert answer.status_code == status
    assert "Peili-Complete" not in answer.headers


async def test_a_host_whose_store_is_down_says_so() -> None:
    router = StaticRouter([])
    async with entered(router, store=Down()), asking(router) as client:
        assert (await client.head(key_path(UNKNOWN))).status_code == 503


async def test_a_host_whose_store_hangs_says_so_and_keeps_nobody() -> None:
    router, store, limits = StaticRouter([]), Hanging(), Limits(lookup_timeout=0.1)
    async with entered(router, store=store, limits=limits), asking(router) as client, asyncio.timeout(60):
        assert (await client.head(key_path(UNKNOWN))).status_code == 503
        assert store.waiting == 0


async def test_a_router_that_is_not_entered_says_so() -> None:
    async with asking(StaticRouter([])) as client:
        assert (await client.head(key_path(UNKNOWN))).status_code == 503


async def test_nothing_but_head_is_answered(store: MemoryStore) -> None:
    router = StaticRouter([])
    async with entered(router, store=store), asking(router) as client:
        for method in ("GET", "POST", "DELETE"):
            assert (await client.request(method, key_path(UNKNOWN))).status_code == 405


async def test_one_router_understands_another_behind_a_prefix(store: MemoryStore) -> None:
    theirs = StaticRouter([])
    app = Starlette(routes=[Mount("/some/where/_router", routes=theirs.routes())])
    async with entered(theirs, store=store, identity="they"), served(app) as url:
        ours = StaticRouter.from_config({"peers": [f"{url}/some/where"]})
        async with entered(ours):
            for key in (TAG, Digest.of(b"content")):
                assert [(each.peer.id, each.size) for each in await holders(ours, key)] == [(f"{url}/some/where", 7)]
