"""How a membership router answers other hosts that ask for a key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import quote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.support.neighbours import entered, holders, served
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
    """A store that does not answer. `waiting` is the number of calls that wait for it."""

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
async def client_of(router: StaticRouter) -> AsyncGenerator[httpx.AsyncClient, None]:
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
async def test_a_host_describes_what_its_store_has(store: MemoryStore, key: Digest | Reference) -> None:
    router = StaticRouter([])
    async with entered(router, store=store), client_of(router) as client:
        response = await client.head(key_path(key))
    assert response.status_code == 200
    assert response.headers["Docker-Content-Digest"] == Digest.of(b"content")
    assert response.headers["Peili-Complete"] == "true"
    assert response.headers["Peili-Size"] == "7"


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
async def test_a_host_refuses_a_key_that_it_does_not_have_or_that_is_malformed(
    store: MemoryStore, key: str | Digest | Reference, status: int
) -> None:
    router = StaticRouter([])
    selection = Selection(exclude=[":latest$"])
    async with entered(router, store=store, selection=selection), client_of(router) as client:
        response = await client.head(f"/_router/keys/{quote(str(key), safe='/:')}")
    assert response.status_code == status
    assert "Peili-Complete" not in response.headers


async def test_a_host_describes_content_in_flight_to_peers_that_ask_for_it(store: MemoryStore) -> None:
    router, digest, unsized = StaticRouter([]), Digest.of(b"half of it"), Digest.of(b"of unknown size")
    store.begin(unsized)
    ingest = store.begin(Digest.of(b"another"), 7)
    ingest.write(b"anot")
    async with entered(router, store=store), client_of(router) as client:
        for value, status in (("1", 200), ("0", 404), ("", 404)):
            response = await client.head(key_path(digest), headers={"Peili-In-Flight": value})
            assert response.status_code == status
        in_flight = {"Peili-In-Flight": "1"}
        response = await client.head(key_path(ingest.digest), headers=in_flight)
        names = ("Docker-Content-Digest", "Peili-Complete", "Peili-Available", "Peili-Size")
        assert [response.headers[name] for name in names] == [ingest.digest, "false", "4", "7"]
        response = await client.head(key_path(Digest.of(b"content")), headers=in_flight)
        assert (response.headers["Peili-Complete"], "Peili-Available" in response.headers) == ("true", False)
        for missing in (unsized, UNKNOWN):
            assert (await client.head(key_path(missing), headers=in_flight)).status_code == 404


async def test_a_lookup_does_not_find_content_in_flight(store: MemoryStore) -> None:
    theirs = StaticRouter([])
    app = Starlette(routes=[Mount("/_router", routes=theirs.routes())])
    async with entered(theirs, store=store, identity="they"), served(app) as url:
        ours = StaticRouter.from_config({"peers": [url]})
        async with entered(ours):
            assert await holders(ours, Digest.of(b"half of it")) == []


async def test_a_store_that_is_down_leads_to_503() -> None:
    router = StaticRouter([])
    async with entered(router, store=Down()), client_of(router) as client:
        assert (await client.head(key_path(UNKNOWN))).status_code == 503


async def test_a_store_that_hangs_leads_to_503_in_time() -> None:
    router, store, limits = StaticRouter([]), Hanging(), Limits(lookup_timeout=0.1)
    async with entered(router, store=store, limits=limits), client_of(router) as client, asyncio.timeout(60):
        assert (await client.head(key_path(UNKNOWN))).status_code == 503
        assert store.waiting == 0


async def test_a_router_that_is_not_running_answers_503() -> None:
    async with client_of(StaticRouter([])) as client:
        assert (await client.head(key_path(UNKNOWN))).status_code == 503


async def test_only_head_is_allowed(store: MemoryStore) -> None:
    router = StaticRouter([])
    async with entered(router, store=store), client_of(router) as client:
        for method in ("GET", "POST", "DELETE"):
            assert (await client.request(method, key_path(UNKNOWN))).status_code == 405


async def test_a_router_finds_content_at_another_one_behind_a_path_prefix(store: MemoryStore) -> None:
    theirs = StaticRouter([])
    app = Starlette(routes=[Mount("/some/where/_router", routes=theirs.routes())])
    async with entered(theirs, store=store, identity="they"), served(app) as url:
        ours = StaticRouter.from_config({"peers": [f"{url}/some/where"]})
        async with entered(ours):
            for key in (TAG, Digest.of(b"content")):
                assert [(each.peer.id, each.size) for each in await holders(ours, key)] == [(f"{url}/some/where", 7)]
