"""HEAD, 304, ranges and 416 between two real mirrors on real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
import pytest
from tests.mirror.relay.pulling import LARGE, SMALL, content, path_of
from tests.support.plain_http import plain_client

from peili.mirror import Digest, Mirror, Peer, serve
from peili.mirror.oci.references import OCI_INDEX
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio
INDEX = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "annotations": {"a": "b" * 200}})
CONTENTS = {
    "small blob": ("blobs", content(SMALL)),
    "large blob": ("blobs", content(4 * LARGE)),
    "manifest": ("manifests", INDEX.encode()),
}


@asynccontextmanager
async def two_mirrors(*data: bytes) -> AsyncGenerator[tuple[httpx.AsyncClient, Mirror]]:
    """Serve a mirror with an empty store, and its only peer, which has all `data`. Yields a client and the peer."""
    store = MemoryStore()
    for each in data:
        store.add(each)
    there = Mirror(store, StaticRouter([]), auth=lambda _: True, identity="there")
    async with there, serve(there, local="127.0.0.1:0", peer="127.0.0.1:0") as other:
        router = StaticRouter([Peer("there", (f"http://{other.peer_addresses[0]}",))])
        here = Mirror(MemoryStore(), router, identity="here")
        async with here, serve(here, local="127.0.0.1:0") as serving:
            url = f"http://{serving.local_addresses[0]}"
            async with plain_client(base_url=url, trust_env=False, timeout=90) as client:
                yield client, there


def _sent(mirror: Mirror) -> float:
    """Return the bytes of content that the peer door sent."""
    return mirror.metrics.sent.value("peer", "store")


@pytest.mark.parametrize("which", CONTENTS)
async def test_content_of_a_peer_gets_the_same_responses_as_local_content(which: str) -> None:
    kind, data = CONTENTS[which]
    digest, size = Digest.of(data), len(data)
    async with two_mirrors(data) as (client, there):
        path = path_of(digest, kind)
        head = await client.head(path)
        assert (head.status_code, head.headers["content-length"]) == (200, str(size))
        for method in ("GET", "HEAD"):
            held = await client.request(method, path, headers={"If-None-Match": f'"{digest}"'})
            assert (held.status_code, held.content) == (304, b"")
        assert _sent(there) == 0
        for byte_range in (f"bytes={size}-", "bytes=-0"):
            beyond = await client.get(path, headers={"Range": byte_range})
            assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
        before = _sent(there)
        part = await client.get(path, headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, data[10:20])
        assert part.headers["content-range"] == f"bytes 10-19/{size}"
        assert _sent(there) - before == (10 if which == "large blob" else size)
        suffix = await client.get(path, headers={"Range": "bytes=-7"})
        assert (suffix.status_code, suffix.content) == (206, data[-7:])
        several = await client.get(path, headers={"Range": "bytes=0-9,20-29"})
        assert (several.status_code, several.content) == (200, data)
        assert head.headers["content-type"] == several.headers["content-type"]


async def test_a_manifest_of_an_unknown_type_passes_both_mirrors() -> None:
    data = json.dumps({"mediaType": "application/vnd.example.thing.v1+json", "blobs": []}).encode()
    async with two_mirrors(data) as (client, _):
        for kind, media_type in (
            ("manifests", "application/vnd.example.thing.v1+json"),
            ("blobs", "application/octet-stream"),
        ):
            for method in ("HEAD", "GET"):
                answer = await client.request(method, path_of(Digest.of(data), kind))
                assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
                assert answer.headers["content-length"] == str(len(data))
