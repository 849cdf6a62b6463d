"""The list of tags agrees with what the resolver answers for each of them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from tests.mirror.doors.in_memory_host import client_for, error_codes
from typing_extensions import override

from peili.mirror import Descriptor, Mirror, Peer, Plugins, Reference, Resolver, Unavailable, serve
from peili.mirror.oci.references import OCI_MANIFEST
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio
PATH = "/v2/demo/tags/list?ns=registry.example"


def store_with(*tags: str) -> MemoryStore:
    store = MemoryStore()
    for tag in tags:
        descriptor = store.add(json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "of": tag}).encode())
        store.tag(Reference("registry.example", "demo", tag), descriptor)
    return store


@asynccontextmanager
async def client_of(resolver: Resolver, **options: Any) -> AsyncGenerator[httpx.AsyncClient]:
    """Yield a client of a host with the tags a and b. Its peers have b and c, and nothing that answers."""
    peer_mirror = Mirror(store_with("b", "c"), StaticRouter([]), identity="there", insecure=True)
    async with peer_mirror, serve(peer_mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        peers = [Peer("there", (f"http://{serving.peer_addresses[0]}",)), Peer("dead", ("http://127.0.0.1:9",))]
        mirror = Mirror(store_with("a", "b"), StaticRouter(peers), resolver, identity="here", **options)
        async with mirror, client_for(mirror.local) as client:
            yield client


def rule(match: str, *use: str) -> dict[str, Any]:
    return {"match": match, "use": list(use)}


@pytest.mark.parametrize(
    ("kind", "options", "tags"),
    [
        ("defer", {}, ""),
        ("local", {}, "ab"),
        ("peers", {}, "abc"),
        ("chain", {"rules": [rule(":a$", "defer"), rule("", "local")]}, "b"),
        ("chain", {"rules": [rule(":a$", "local"), rule(":[bc]$", "peers")]}, "abc"),
        ("chain", {"rules": [rule("^other/", "peers")]}, ""),
    ],
)
async def test_those_tags_are_listed_that_the_resolver_answers(
    kind: str, options: Mapping[str, Any], tags: str
) -> None:
    async with client_of(Plugins().resolver(kind, options)) as client:
        answer = await client.get(PATH)
        if tags:
            assert answer.json()["tags"] == list(tags)
        else:
            assert (answer.status_code, error_codes(answer)) == (404, ["NAME_UNKNOWN"])
        for tag in "abc":
            status = (await client.head(f"/v2/demo/manifests/{tag}?ns=registry.example")).status_code
            assert status == (200 if tag in tags else 404)


async def test_tags_of_peers_that_are_not_for_this_mirror_are_not_listed() -> None:
    async with client_of(Plugins().resolver("peers", {}), exclude=(":c$",)) as client:
        assert (await client.get(PATH)).json()["tags"] == ["a", "b"]


class OnlyA(Resolver):
    """A resolver that does not know of `tags`."""

    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        if reference.tag == "b":
            raise Unavailable("not now")
        return Descriptor("type", store_with("a").add(b"x").digest, 1)


class Failing(OnlyA):
    @override
    async def tags(self, registry: str, repository: str, stored: Any) -> list[str]:
        raise RuntimeError("a bug")


async def test_the_tags_of_a_third_party_resolver_are_those_that_it_answers() -> None:
    async with client_of(OnlyA()) as client:
        assert (await client.get(PATH)).json()["tags"] == ["a"]
    async with client_of(Failing()) as client:
        assert (await client.get(PATH)).status_code == 404
