"""If the registry is in the path, the local door answers a manifest only if all of the image is available."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from tests.mirror.doors.in_memory_host import client_for, error_codes
from typing_extensions import override

from peili.mirror import Descriptor, Digest, Holder, Key, Mirror, Peer, Reference, serve
from peili.mirror.oci.children import host_platform
from peili.mirror.oci.references import OCI_INDEX, OCI_MANIFEST
from peili.mirror.resolvers import LocalResolver
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio
NAME = Reference("registry.example", "demo", "v1")
OTHER_PLATFORM = "linux/riscv64" if host_platform() != "linux/riscv64" else "linux/amd64"


class DemoImage:
    """An index for two platforms. Its parts are put into stores one by one."""

    def __init__(self) -> None:
        self.parts: dict[str, bytes] = {}
        self.index = self._add_index()

    def put(self, store: MemoryStore, *names: str) -> None:
        """Add the parts of these names to `store`, or all that are for this host."""
        for name in names or [name for name in self.parts if not name.startswith("other")]:
            store.add(self.parts[name])

    def digest(self, name: str) -> Digest:
        return Digest.of(self.parts[name])

    def _add(self, name: str, data: bytes, media_type: str) -> dict[str, Any]:
        self.parts[name] = data
        return {"digest": self.digest(name), "size": len(data), "mediaType": media_type}

    def _add_index(self) -> Descriptor:
        entries: list[dict[str, Any]] = []
        for prefix, platform in (("", host_platform()), ("other-", OTHER_PLATFORM)):
            config = self._add(
                f"{prefix}config", f"{prefix}config".encode(), "application/vnd.oci.image.config.v1+json"
            )
            layers = [self._add(f"{prefix}{each}", f"{prefix}{each}".encode(), "layer") for each in ("one", "two")]
            document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
            entry = self._add(f"{prefix}manifest", json.dumps(document).encode(), OCI_MANIFEST)
            system, _, architecture = platform.partition("/")
            architecture, _, variant = architecture.partition("/")
            entries.append({**entry, "platform": {"os": system, "architecture": architecture, "variant": variant}})
        data = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
        self._add("index", data, OCI_INDEX)
        return Descriptor(OCI_INDEX, self.digest("index"), len(data))


class StaleRouter(StaticRouter):
    """Names all peers as holders of everything, as if it had not heard that they have removed it."""

    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        for peer in self.peers():
            yield Holder(peer, complete=True)


@asynccontextmanager
async def client_of(
    here: MemoryStore, there: MemoryStore | None = None, make_router: type[StaticRouter] = StaticRouter
) -> AsyncGenerator[httpx.AsyncClient]:
    """Yield a client of the local door of a host with the store `here`, and a peer with the store `there`."""
    peer_mirror = Mirror(there or MemoryStore(), StaticRouter([]), identity="there", insecure=True)
    async with peer_mirror, serve(peer_mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        router = make_router([Peer("there", (f"http://{serving.peer_addresses[0]}",))])
        mirror = Mirror(here, router, LocalResolver(), identity="here")
        async with mirror, client_for(mirror.local) as client:
            yield client


def path(target: str, kind: str = "manifests") -> str:
    return f"/v2/registry.example/demo/{kind}/{target}"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_whole_image_is_answered(method: str) -> None:
    image, here = DemoImage(), MemoryStore()
    image.put(here)
    here.tag(NAME, image.index)
    async with client_of(here) as client:
        for target in ("v1", image.index.digest, image.digest("manifest")):
            answer = await client.request(method, path(target))
            assert answer.status_code == 200
            assert answer.headers["Docker-Content-Digest"] in {image.index.digest, image.digest("manifest")}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("missing", ["config", "one", "two", "manifest"])
async def test_an_image_without_one_of_its_parts_is_not_answered(missing: str, method: str) -> None:
    image, here = DemoImage(), MemoryStore()
    image.put(here, *({"config", "one", "two", "manifest", "index"} - {missing}))
    here.tag(NAME, image.index)
    async with client_of(here) as client:
        for target in ("v1", image.index.digest, *([image.digest("manifest")] if missing != "manifest" else [])):
            answer = await client.request(method, path(target))
            assert answer.status_code == 404
            if method == "GET":
                assert error_codes(answer) == ["MANIFEST_UNKNOWN"]
                assert f"{image.digest(missing)} is missing" in answer.json()["errors"][0]["message"]
        assert (await client.get(path(image.digest("one"), "blobs"))).status_code == (404 if missing == "one" else 200)
        for target in ("v1", image.index.digest):  # containerd goes upstream for what is missing
            answer = await client.request(method, f"/v2/demo/manifests/{target}?ns=registry.example")
            assert answer.status_code == 200


async def test_what_peers_have_counts() -> None:
    image, here, there = DemoImage(), MemoryStore(), MemoryStore()
    image.put(here, "index", "one")
    image.put(there, "manifest", "config", "two")
    here.tag(NAME, image.index)
    async with client_of(here, there) as client:
        assert (await client.get(path("v1"))).status_code == 200
    image.put(there, "index")
    async with client_of(MemoryStore(), there) as client:
        answer = await client.get(path(image.index.digest))
        assert answer.status_code == 404
        assert f"{image.digest('one')} is missing" in answer.json()["errors"][0]["message"]
    image.put(there, "one")
    async with client_of(MemoryStore(), there) as client:
        assert (await client.get(path(image.index.digest))).content == image.parts["index"]


async def test_a_layer_that_a_peer_no_longer_has_does_not_count() -> None:
    """A client that can't go upstream would fail with the layer."""
    image, here, there = DemoImage(), MemoryStore(), MemoryStore()
    image.put(here, "index", "manifest", "config", "one")
    async with client_of(here, there, StaleRouter) as client:
        answer = await client.get(path(image.index.digest))
        assert answer.status_code == 404
        assert f"{image.digest('two')} is missing" in answer.json()["errors"][0]["message"]
    image.put(there, "two")
    async with client_of(here, there, StaleRouter) as client:
        assert (await client.get(path(image.index.digest))).status_code == 200


async def test_an_index_without_this_platform_is_not_answered() -> None:
    image, here = DemoImage(), MemoryStore()
    index = {"mediaType": OCI_INDEX, "manifests": json.loads(image.parts["index"])["manifests"][1:]}
    digest = here.add(json.dumps(index).encode()).digest
    image.put(here, *image.parts)
    async with client_of(here) as client:
        answer = await client.get(path(digest))
        assert answer.status_code == 404
        assert f"the index has nothing for {host_platform()}" in answer.json()["errors"][0]["message"]


async def test_an_image_with_too_many_parts_is_not_answered() -> None:
    here = MemoryStore()
    layers = [{"digest": Digest.of(str(number).encode()), "size": 1} for number in range(1025)]
    digest = here.add(json.dumps({"mediaType": OCI_MANIFEST, "layers": layers}).encode()).digest
    async with client_of(here) as client:
        answer = await client.get(path(digest))
        assert answer.status_code == 404
        assert "more than 1024 children" in answer.json()["errors"][0]["message"]
