"""`peili find` and `peili ping` ask a running peili. They pull nothing and change nothing."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
import pytest
from tests.mirror.doors.in_memory_host import client_for
from tests.mirror.relay.peers import honest, peers, short_after, wrong_bytes
from tests.mirror.relay.pulling import pulling
from tests.support.neighbours import black_hole_url
from tests.support.plain_http import plain_client

from peili.adapters.standalone.cli import main
from peili.mirror import Digest, Limits, Mirror, NotFound, Peer, Reference, serve
from peili.mirror.oci.references import OCI_INDEX, OCI_MANIFEST
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio
LAYER, OTHER, CONFIG = b"layer" * 500_000, b"other" * 300, b"{}"


def manifest(*layers: bytes) -> bytes:
    entries = [{"digest": Digest.of(each), "size": len(each)} for each in layers]
    config = {"digest": Digest.of(CONFIG), "size": len(CONFIG)}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": entries}).encode()


MANIFEST = manifest(LAYER, OTHER)
INDEX = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            {"digest": Digest.of(MANIFEST), "platform": {"os": "linux", "architecture": "amd64"}},
            {"digest": Digest.of(b"arm"), "platform": {"os": "linux", "architecture": "arm64"}},
            {"digest": Digest.of(b"attestation"), "platform": {"os": "unknown", "architecture": "unknown"}},
            {"digest": "nonsense"},
            3,
        ],
    }
).encode()


class Host:
    """A host that has `OTHER` and has a peer with the rest of the image ``docker.io/library/demo:v1``."""

    def __init__(self, mirror: Mirror, store: MemoryStore, there: Mirror, url: str) -> None:
        self.mirror = mirror
        self.store = store
        self.there = there
        self.url = url

    async def run(self, *arguments: str) -> int:
        return await asyncio.to_thread(main, [*arguments, "--url", self.url])


@asynccontextmanager
async def host(*more: Peer) -> AsyncGenerator[Host]:
    there = MemoryStore()
    for data in (LAYER, CONFIG, MANIFEST):
        there.add(data)
    there.tag(Reference("docker.io", "library/demo", "v1"), there.add(INDEX))
    other = Mirror(there, StaticRouter([]), identity="node-b")
    async with other, serve(other, local="127.0.0.1:0", peer="127.0.0.1:0") as peer:
        store = MemoryStore()
        store.add(OTHER)
        known = [Peer("node-b", (f"http://{peer.peer_addresses[0]}",)), *more]
        mirror = Mirror(store, StaticRouter(known), identity="node-a", limits=Limits(lookup_timeout=2))
        async with mirror, serve(mirror, local="127.0.0.1:0", ops="127.0.0.1:0") as serving:
            yield Host(mirror, store, other, f"http://{serving.ops_addresses[0]}")


@pytest.fixture(autouse=True)
def amd64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


async def test_find_says_who_has_which_part_and_what_a_pull_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    async with host() as asked:
        assert await asked.run("find", "demo:v1") == 0
        assert asked.mirror.metrics.lookups.value("hit") == 0, "no lease was taken"
        assert asked.mirror.accounting.totals().peers == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"docker.io/library/demo:v1  {Digest.of(INDEX)}"
    rows = [line.split(maxsplit=2) for line in lines[1:6]]
    assert [row[:2] for row in rows] == [
        ["manifest", Digest.of(INDEX).encoded[:12]],
        ["manifest", Digest.of(MANIFEST).encoded[:12]],
        ["config", Digest.of(CONFIG).encoded[:12]],
        ["layer", Digest.of(LAYER).encoded[:12]],
        ["layer", Digest.of(OTHER).encoded[:12]],
    ]
    assert [row[2] for row in rows][2:] == ["2 B  node-b", "2.4 MiB  node-b", "1.5 KiB  here"]
    assert lines[6] == "what a pull would do"
    assert "1. DeferResolver leaves the tag to the registry: the runtime asks it which digest it means" in lines[7]
    assert f"2. the tag means {Digest.of(INDEX)}, says this host's store or a peer" in lines[8]
    assert "3. from this host's store: 1 part, 1.5 KiB" in lines[9]
    assert "4. from peers: 4 parts, 2.4 MiB" in lines[10]


async def test_find_with_test_fetches_the_beginning_of_each_part_and_keeps_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with host() as asked:
        assert await asked.run("find", "demo:v1", "--test", "--json") == 0
        sent = asked.there.metrics.sent.value("peer", "store")
        assert asked.mirror.metrics.lookups.value("hit") == 0
        with pytest.raises(NotFound):
            await asked.store.describe(Digest.of(LAYER))
    document = json.loads(capsys.readouterr().out)
    assert document["ok"]
    tests = {part["digest"]: part["test"] for part in document["parts"]}
    assert (tests[Digest.of(LAYER)]["from"], tests[Digest.of(LAYER)]["bytes"]) == ("node-b", 1 << 20)
    assert (tests[Digest.of(OTHER)]["from"], tests[Digest.of(OTHER)]["bytes"]) == ("the store", len(OTHER))
    assert (1 << 20) < sent < (1 << 20) + 20_000, "not the rest of the layer"


async def test_an_image_that_nobody_has_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    async with host() as asked:
        assert await asked.run("find", "ghcr.io/nobody/has:it") == 1
        assert "neither this host nor a peer knows the tag: the runtime goes upstream" in capsys.readouterr().out
        digest = Digest.of(b"nothing")
        assert await asked.run("find", f"demo@{digest}") == 0
        out = capsys.readouterr().out
        assert "only upstream" in out
        assert f"the manifest {digest} can't be read here: its parts are unknown" in out


@pytest.mark.parametrize("name", ["Demo:v1", "demo:", "demo@sha256:12", "", "a b", "demo:v1/x/blobs"])
async def test_a_name_that_is_none_is_refused_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with host() as asked:
        assert await asked.run("find", name) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"peili: IMAGE: not .*\n", error), error


async def test_a_part_that_a_peer_sends_wrong_or_not_to_its_end_is_named() -> None:
    for script, problem in ((wrong_bytes, "wrong bytes"), (short_after(100), "")):
        async with peers(OTHER, script) as [peer], pulling([peer.holder]) as asked:
            part = f"demo@{Digest.of(OTHER)}"
            async with httpx.AsyncClient(transport=httpx.ASGITransport(asked.mirror.ops)) as client:
                document = (await client.get("http://x/try", params={"image": part}, timeout=60)).json()
        assert not document["ok"]
        assert problem in document["parts"][0]["test"]["error"]


async def test_ping_measures_each_peer_and_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    async with peers(b"", honest) as [other], host(Peer("node-x", other.urls)) as asked:
        assert await asked.run("ping", "node-b") == 0
        out = capsys.readouterr().out
        assert re.fullmatch(r"  node-b  http://127\.0\.0\.1:\d+  \S+ ms \(the slowest of 3: \S+ ms\)\n", out)
        assert await asked.run("ping") == 1
        out = capsys.readouterr().out
        assert re.search(r"\n  node-x  http://\S+ +FAILED: something else than peili answers \(200\)\n", out)
        assert await asked.run("ping", "nobody") == 1
        assert "no peer is called nobody; `peili status` lists them" in capsys.readouterr().err


async def test_a_peer_that_does_not_answer_fails_in_bounded_time(capsys: pytest.CaptureFixture[str]) -> None:
    with black_hole_url() as url:
        async with host(Peer("node-z", (url,))) as asked:
            assert await asked.run("ping", "node-z", "--json") == 1
    [answer] = json.loads(capsys.readouterr().out)
    assert answer["error"].startswith("peer node-z: ")


async def test_a_peer_of_which_only_the_url_is_known_has_the_name_that_it_answers_with(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with host() as there:
        [url] = there.there.identity.urls
        mirror = Mirror(MemoryStore(), StaticRouter([Peer(url, (url,))]), identity="node-c")
        async with mirror, serve(mirror, local="127.0.0.1:0") as serving:
            asked = Host(mirror, MemoryStore(), there.there, f"http://{serving.ops_addresses[0]}")
            await asked.run("ping")
            assert await asked.run("ping", "node-b") == 0
            assert await asked.run("find", "demo:v1") == 0
            assert await asked.run("status") == 0
            async with plain_client(base_url=asked.url) as client:
                images = (await client.get("/images")).json()
    assert images["asked"] == ["node-b"]
    out = capsys.readouterr().out
    assert re.search(rf"\n  node-b  {url}  seen ", out)
    assert re.search(r"\n  manifest .*  node-b\n", out)


async def test_images_lists_what_is_here_and_who_else_has_it() -> None:
    async with host() as asked, plain_client(base_url=asked.url) as client:
        row = {"image": "docker.io/library/demo:v1", "digest": Digest.of(INDEX), "peers": ["node-b"]}
        assert (await client.get("/images")).json()["images"] == [{**row, "here": False}]
        asked.store.tag(Reference("docker.io", "library/demo", "v1"), asked.store.add(INDEX))
        assert (await client.get("/images")).json()["images"] == [{**row, "here": True}]


async def test_only_few_questions_are_answered_at_the_same_time() -> None:
    with black_hole_url() as url:
        async with host(Peer("node-z", (url,))) as asked, plain_client(base_url=asked.url, timeout=60) as client:
            answers = await asyncio.gather(*(client.get("/ping", params={"peer": "node-z"}) for _ in range(3)))
    assert sorted(each.status_code for each in answers) == [200, 200, 429]


async def test_a_page_of_another_site_cannot_ask() -> None:
    async with host() as asked, plain_client(base_url=asked.url) as client:
        for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}, {"Host": "evil.example"}):
            assert (await client.get("/ping", headers=headers)).status_code == 403


async def test_the_events_are_the_status_each_second_until_the_drain() -> None:
    async with host() as asked, plain_client(base_url=asked.url, timeout=60) as client:
        async with client.stream("GET", "/events") as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            events: list[str] = []
            draining: asyncio.Task[None] | None = None
            async for line in response.aiter_lines():  # it ends with the drain
                events += [line] if line.startswith("data: ") else []
                if len(events) == 2 and draining is None:
                    draining = asyncio.create_task(asked.mirror.drain(1))
            assert draining is not None
            await draining
        assert all(json.loads(each.removeprefix("data: "))["identity"] == "node-a" for each in events)


async def test_a_peer_that_is_known_only_by_its_url_says_its_id() -> None:
    async with host() as asked:
        [url] = asked.mirror.status()["peers"][0]["urls"]
        stranger = Mirror(MemoryStore(), StaticRouter([Peer(url, (url,))]))
        async with stranger, client_for(stranger.ops) as client:
            [answer] = (await client.get("/ping")).json()
    assert (answer["id"], answer["answers_as"], answer["error"]) == (url, "node-b", None)
