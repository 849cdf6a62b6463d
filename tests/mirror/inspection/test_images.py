"""Which images a host has, and which only its peers have: what the page for operators lists."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from starlette.applications import Starlette
from tests.mirror.doors.in_memory_host import client_for
from tests.mirror.relay.peers import ScriptedPeer, honest, listening, silent
from typing_extensions import override

from peili.mirror import Descriptor, Digest, Limits, Mirror, Peer, Reference, serve
from peili.mirror.doors.images import ImagesRoute
from peili.mirror.peer_api.images import IMAGES_PATH, MAX_IMAGES, ImageNames
from peili.mirror.testing import context_for
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio
MANIFEST, NEWER = b'{"schemaVersion": 2}', b'{"schemaVersion": 2, "layers": []}'
ONE, TWO = Digest.of(MANIFEST), Digest.of(NEWER)


def store_with(**images: bytes) -> MemoryStore:
    store = MemoryStore()
    for name, manifest in images.items():
        store.tag(Reference("docker.io", f"library/{name}", "v1"), store.add(manifest))
    return store


@asynccontextmanager
async def served(name: str, store: MemoryStore, **options: Any) -> AsyncGenerator[Peer]:
    mirror = Mirror(store, StaticRouter([]), identity=name, **options)
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        yield Peer(name, (f"http://{serving.peer_addresses[0]}",))


async def images_of(mirror: Mirror) -> dict[str, Any]:
    async with client_for(mirror.ops) as client:
        answer = await client.get("/images")
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def test_images_that_only_others_have_are_listed_after_those_of_this_host() -> None:
    here, there = store_with(app=MANIFEST), store_with(app=MANIFEST, older=MANIFEST, tool=NEWER)
    here.tag(Reference("docker.io", "library/mine", "v1"), here.add(b"{}"))
    async with (
        served("node-b", there) as b,
        served("node-c", store_with(app=NEWER)) as c,
        Mirror(here, StaticRouter([b, c]), identity="node-a") as mirror,
    ):
        found = await images_of(mirror)
    rows = [(each["image"], each["digest"], each["here"], each["peers"]) for each in found["images"]]
    others = [
        ("docker.io/library/app:v1", TWO, False, ["node-b", "node-c"]),  # a tag may mean something else elsewhere
        ("docker.io/library/older:v1", ONE, True, ["node-b"]),  # what it means is here under another name
        ("docker.io/library/tool:v1", TWO, False, ["node-b", "node-c"]),  # node-c has it under another name
    ]
    assert rows == [
        ("docker.io/library/app:v1", ONE, True, ["node-b"]),
        ("docker.io/library/mine:v1", Digest.of(b"{}"), True, []),
        *others,
    ]
    assert (found["total"], found["asked"], found["silent"]) == (5, ["node-b", "node-c"], {})


async def test_excluded_images_are_told_to_nobody() -> None:
    secret = store_with(app=MANIFEST, secret=NEWER)
    async with (
        served("node-b", secret, exclude=["/secret:"]) as b,
        Mirror(secret, StaticRouter([b]), registries=["docker.io"], exclude=["app"]) as mirror,
    ):
        found = await images_of(mirror)
    assert [(each["image"], each["here"]) for each in found["images"]] == [
        ("docker.io/library/secret:v1", True),
        ("docker.io/library/app:v1", False),
    ]


def is_secret(_: str, repository: str) -> bool:
    return repository == "library/secret"


async def test_images_that_only_some_may_pull_are_told_to_nobody() -> None:
    async with context_for(StaticRouter([]), store=store_with(app=MANIFEST, secret=NEWER)) as context:
        route = ImagesRoute(replace(context, covers=is_secret)).route()
        async with client_for(Starlette(routes=[route])) as client:
            told = ImageNames.parse((await client.get(IMAGES_PATH)).content)
    assert ([str(name) for name, _ in told.images], told.total) == (["docker.io/library/app:v1"], 1)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"x", "not a JSON document"),
        (b'{"images": [], "total": -1}', "the number of images is not a whole number from 0 on"),
        (b'{"images": [["a/b:c"]], "total": 1}', "an image has not two values"),
        (b'{"images": [["docker.io/<b>:c", "%s"]], "total": 1}' % ONE.encode(), "not a repository: '<b>'"),
        (b'{"images": [["docker.io/a:b", "sha256:1"]], "total": 1}', "not a digest"),
        (json.dumps({"images": [0] * (MAX_IMAGES + 1)}).encode(), f"not a list of up to {MAX_IMAGES} items"),
        (bytes(2 << 20), "the response has 2097152 bytes"),
    ],
)
async def test_a_peer_that_lies_is_named_with_the_reason(body: bytes, reason: str) -> None:
    async with (
        listening(ScriptedPeer("liar", body, honest)) as liar,
        served("node-b", store_with(app=MANIFEST)) as b,
        Mirror(MemoryStore(), StaticRouter([liar.peer, b])) as mirror,
    ):
        found = await images_of(mirror)
    assert [each["image"] for each in found["images"]] == ["docker.io/library/app:v1"]
    assert reason in found["silent"]["liar"]


async def test_a_peer_that_is_silent_costs_a_bounded_time() -> None:
    limits = Limits(first_byte_timeout=0.2, lookup_timeout=0.2)
    async with (
        listening(ScriptedPeer("silent", b"", silent)) as peer,
        Mirror(store_with(app=MANIFEST), StaticRouter([peer.peer]), limits=limits) as mirror,
    ):
        found = await images_of(mirror)
    assert [each["image"] for each in found["images"]] == ["docker.io/library/app:v1"]
    assert "silent" in found["silent"]


async def test_of_many_images_and_peers_some_are_listed_and_all_are_counted() -> None:
    here, there = (store_with(**{f"{name}{number}": b"{}" + name.encode() for number in range(1100)}) for name in "ab")
    async with AsyncExitStack() as stack:
        b = await stack.enter_async_context(served("node-b", there))
        silent_peers = [Peer(f"n{number}", ("http://127.0.0.1:1",)) for number in range(40)]
        router = StaticRouter([b, *silent_peers])
        mirror = await stack.enter_async_context(Mirror(here, router, identity="node-a"))
        found = await images_of(mirror)
    assert [each["here"] for each in found["images"]] == [True] * 256 + [False] * 256
    assert found["total"] == 2200
    assert len(found["asked"]) <= 32


async def test_a_host_that_many_others_ask_reads_its_list_once_at_a_time() -> None:
    class Counting(MemoryStore):
        now, most = 0, 0

        @override
        async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0)
            self.now -= 1
            return await super().images()

    store = Counting()
    async with Mirror(store, StaticRouter([]), identity="node-a") as mirror, client_for(mirror.peer) as client:
        answers = await asyncio.gather(*(client.get(IMAGES_PATH) for _ in range(20)))
    assert {each.content for each in answers} == {ImageNames((), 0).encode()}
    assert store.most == 1
