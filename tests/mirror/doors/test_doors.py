"""The pull part of the OCI distribution spec, at both doors, for content of the store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import httpx
import pytest
from tests.mirror.doors.in_memory_host import DOORS, TAGS, InMemoryHost, client_for, error_codes, in_memory_host
from typing_extensions import override

from peili.mirror import Descriptor, Digest, Limits, Mirror, Reference
from peili.mirror.oci.references import OCI_MANIFEST
from peili.mirror.resolvers import LocalResolver
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

ABSENT = "sha256:" + "0" * 64


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/v2/", "/v2"])
async def test_the_base_endpoint_identifies_a_registry(client: httpx.AsyncClient, method: str, path: str) -> None:
    response = await client.request(method, path)
    assert response.status_code == 200
    assert response.headers["Docker-Distribution-API-Version"] == "registry/2.0"
    assert response.content == (b"{}" if method == "GET" else b"")
    assert response.headers["Content-Length"] == "2"


@pytest.mark.parametrize("by", ["digest", "tag"])
async def test_a_manifest_is_served_by_digest_and_tag(client: httpx.AsyncClient, host: InMemoryHost, by: str) -> None:
    path = host.manifest_path if by == "digest" else "/v2/registry.example/demo/manifests/v1"
    response = await client.get(path)
    head = await client.head(path)
    assert response.status_code == head.status_code == 200
    assert response.content == host.manifest_data
    assert head.content == b""
    assert head.headers == response.headers
    assert response.headers["Content-Type"] == host.manifest.media_type
    assert response.headers["Docker-Content-Digest"] == host.manifest.digest
    assert response.headers["ETag"] == f'"{host.manifest.digest}"'
    assert response.headers["Content-Length"] == str(len(host.manifest_data))
    assert response.headers["Accept-Ranges"] == "bytes"
    assert "Content-Encoding" not in response.headers


async def test_a_blob_is_served(client: httpx.AsyncClient, host: InMemoryHost) -> None:
    response = await client.get(host.blob_path)
    head = await client.head(host.blob_path)
    assert response.status_code == head.status_code == 200
    assert response.content == host.data
    assert head.content == b""
    assert head.headers == response.headers
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert response.headers["Docker-Content-Digest"] == host.layer.digest
    assert response.headers["ETag"] == f'"{host.layer.digest}"'
    assert response.headers["Content-Length"] == str(len(host.data))
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["Content-Encoding"] == "identity"
    assert "Content-Range" not in response.headers


async def test_an_empty_blob_and_a_sha512_blob_are_served(client: httpx.AsyncClient, host: InMemoryHost) -> None:
    for data, algorithm in ((b"", "sha256"), (b"peili", "sha512")):
        added = host.store.add(data, algorithm=algorithm)
        response = await client.get(f"/v2/registry.example/demo/blobs/{added.digest}")
        assert (response.status_code, response.content) == (200, data)
        assert response.headers["Content-Length"] == str(len(data))


@pytest.mark.parametrize(
    ("range_header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=10000-", 10000, 10240),
        ("bytes=-1", 10239, 10240),
        ("bytes=-240", 10000, 10240),
        ("bytes=1-999999", 1, 10240),
        ("bytes=0-", 0, 10240),
        ("bytes=-10240", 0, 10240),
    ],
)
async def test_a_range_request_returns_the_part(
    client: httpx.AsyncClient, host: InMemoryHost, range_header: str, start: int, stop: int
) -> None:
    response = await client.get(host.blob_path, headers={"Range": range_header})
    assert response.status_code == 206
    assert response.content == host.data[start:stop]
    assert response.headers["Content-Length"] == str(stop - start)
    assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/10240"
    assert response.headers["Docker-Content-Digest"] == host.layer.digest


@pytest.mark.parametrize("range_header", ["bytes=0-1,5-4", "bytes=5-4", "items=0-1", "bytes=x"])
async def test_an_invalid_range_returns_the_whole(
    client: httpx.AsyncClient, host: InMemoryHost, range_header: str
) -> None:
    response = await client.get(host.blob_path, headers={"Range": range_header})
    assert (response.status_code, response.content) == (200, host.data)


@pytest.mark.parametrize("range_header", ["bytes=10240-", "bytes=10240-10250", "bytes=-0", f"bytes={10**18}-"])
async def test_a_range_after_the_end_is_416_with_the_size(
    client: httpx.AsyncClient, host: InMemoryHost, range_header: str
) -> None:
    response = await client.get(host.blob_path, headers={"Range": range_header})
    assert (response.status_code, error_codes(response)) == (416, ["SIZE_INVALID"])
    assert response.headers["Content-Range"] == "bytes */10240"


async def test_head_ignores_a_range(client: httpx.AsyncClient, host: InMemoryHost) -> None:
    for range_header in ("bytes=0-1", "bytes=99999-"):
        response = await client.head(host.blob_path, headers={"Range": range_header})
        assert response.status_code == 200
        assert response.headers["Content-Length"] == "10240"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("tag", ['"{}"', "*", 'W/"{}"', '"other", "{}"', 'W/"other",W/"{}" , "third"'])
async def test_if_none_match_returns_304(client: httpx.AsyncClient, host: InMemoryHost, method: str, tag: str) -> None:
    for path, digest in ((host.blob_path, host.layer.digest), (host.manifest_path, host.manifest.digest)):
        response = await client.request(method, path, headers={"If-None-Match": tag.format(digest)})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["ETag"] == f'"{digest}"'


@pytest.mark.parametrize("tag", [f'"{ABSENT}"', "*"])
async def test_a_condition_on_missing_content_is_404(client: httpx.AsyncClient, tag: str) -> None:
    response = await client.get(f"/v2/registry.example/demo/blobs/{ABSENT}", headers={"If-None-Match": tag})
    assert (response.status_code, error_codes(response)) == (404, ["BLOB_UNKNOWN"])


@pytest.mark.parametrize("tag", ["{}", '"other"', "", f'"{ABSENT}"', "garbage"])
async def test_another_entity_tag_returns_the_content(client: httpx.AsyncClient, host: InMemoryHost, tag: str) -> None:
    response = await client.get(host.blob_path, headers={"If-None-Match": tag.format(host.layer.digest)})
    assert (response.status_code, response.content) == (200, host.data)


@pytest.mark.parametrize(
    ("condition", "status"),
    [('"{}"', 206), ('W/"{}"', 200), ('"other"', 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200)],
)
async def test_if_range_decides_on_the_range(
    client: httpx.AsyncClient, host: InMemoryHost, condition: str, status: int
) -> None:
    headers = {"Range": "bytes=5-9", "If-Range": condition.format(host.layer.digest)}
    response = await client.get(host.blob_path, headers=headers)
    assert response.status_code == status
    assert response.content == (host.data[5:10] if status == 206 else host.data)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"/v2/registry.example/demo/manifests/{ABSENT}", 404, "MANIFEST_UNKNOWN"),
        ("/v2/registry.example/demo/manifests/absent", 404, "MANIFEST_UNKNOWN"),
        ("/v2/demo/manifests/v1", 404, "MANIFEST_UNKNOWN"),  # the registry is unknown
        ("/v2/demo/manifests/v1?ns=dotless", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/registry.example/demo/blobs/{ABSENT}", 404, "BLOB_UNKNOWN"),
        ("/v2/registry.example/absent/tags/list", 404, "NAME_UNKNOWN"),
        ("/v2/registry.example/Demo/tags/list", 400, "NAME_INVALID"),
        ("/v2/demo/tags/list?ns=a%2Fb", 400, "NAME_INVALID"),
        ("/v2/registry.example/demo/blobs/sha256:0", 400, "DIGEST_INVALID"),
        ("/v2/registry.example/demo/manifests/-", 400, "MANIFEST_INVALID"),
        ("/v2/registry.example/demo/tags/list?n=-1", 400, "UNSUPPORTED"),
        ("/v2/_catalog", 404, "UNSUPPORTED"),
        ("/", 404, "UNSUPPORTED"),
    ],
)
async def test_errors_have_the_codes_of_the_spec(client: httpx.AsyncClient, path: str, status: int, code: str) -> None:
    response = await client.get(path)
    assert (response.status_code, error_codes(response)) == (status, [code])
    head = await client.head(path)
    assert (head.status_code, head.content) == (status, b"")
    assert head.headers == response.headers


async def test_a_manifest_of_an_unknown_type_keeps_its_own_type(client: httpx.AsyncClient, host: InMemoryHost) -> None:
    data = b'{"mediaType": "application/vnd.example.thing.v1+json", "blobs": []}'
    thing = host.store.add(data)
    host.store.tag(Reference("registry.example", "demo", "thing"), thing)
    for name in (thing.digest, "thing"):
        for method in ("GET", "HEAD"):
            response = await client.request(method, f"/v2/registry.example/demo/manifests/{name}")
            assert (response.status_code, response.content) == (200, data if method == "GET" else b"")
            assert response.headers["Content-Type"] == "application/vnd.example.thing.v1+json"
    blob = await client.get(f"/v2/registry.example/demo/blobs/{thing.digest}")
    assert (blob.content, blob.headers["Content-Type"]) == (data, "application/octet-stream")


async def test_a_tagged_blob_is_not_a_manifest(client: httpx.AsyncClient, host: InMemoryHost) -> None:
    descriptor = Descriptor("application/vnd.example.thing.v1+json", host.layer.digest, host.layer.size)
    host.store.tag(Reference("registry.example", "demo", "layer"), descriptor)
    response = await client.get("/v2/registry.example/demo/manifests/layer")
    assert (response.status_code, error_codes(response)) == (404, ["MANIFEST_UNKNOWN"])


async def test_a_blob_is_not_a_manifest_but_a_manifest_is_a_blob(client: httpx.AsyncClient, host: InMemoryHost) -> None:
    response = await client.get(f"/v2/registry.example/demo/manifests/{host.layer.digest}")
    assert (response.status_code, error_codes(response)) == (404, ["MANIFEST_UNKNOWN"])
    response = await client.get(f"/v2/registry.example/demo/blobs/{host.manifest.digest}")
    assert (response.status_code, response.content) == (200, host.manifest_data)


async def test_content_in_flight_is_404(client: httpx.AsyncClient, host: InMemoryHost) -> None:
    ingest = host.store.begin(host.layer.digest.of(b"whole"), 5)
    ingest.write(b"who")
    path = f"/v2/registry.example/demo/blobs/{ingest.digest}"
    assert (await client.get(path)).status_code == 404
    ingest.write(b"le")
    ingest.commit()
    assert (await client.get(path)).content == b"whole"


@pytest.mark.parametrize(
    ("query", "tags", "more"),
    [
        ("", list(TAGS), None),
        ("?n=10", list(TAGS), None),
        ("?n=4", list(TAGS), None),
        ("?n=2", ["latest", "v1"], "?n=2&last=v1"),
        ("?n=2&last=v1", ["v2", "v3"], None),
        ("?n=1&last=v1", ["v2"], "?n=1&last=v2"),
        ("?last=v", ["v1", "v2", "v3"], None),
        ("?last=zzz", [], None),
        ("?n=0", [], None),
        ("?n=9999999999", list(TAGS), None),
        ("?n=" + "9" * 3000, list(TAGS), None),
        ("?n=000000000000", [], None),
    ],
)
async def test_tags_are_sorted_and_paginated(
    client: httpx.AsyncClient, query: str, tags: list[str], more: str | None
) -> None:
    path = "/v2/registry.example/demo/tags/list"
    response = await client.get(path + query)
    assert response.status_code == 200
    assert response.json() == {"name": "registry.example/demo", "tags": tags}
    assert response.headers.get("Link") == (None if more is None else f'<{path}{more}>; rel="next"')


async def test_the_links_lead_to_all_tags(client: httpx.AsyncClient) -> None:
    page = await client.get("/v2/demo/tags/list?ns=registry.example&n=1")
    tags: list[str] = page.json()["tags"]
    while (more := page.links.get("next")) is not None:
        page = await client.get(more["url"])
        tags += page.json()["tags"]
    assert tags == list(TAGS)


@pytest.mark.parametrize(
    ("path", "headers", "tags"),
    [
        ("/v2/demo/tags/list?ns=quay.example", {}, ["v1"]),
        ("/v2/demo/tags/list", {"OCI-Namespace": "quay.example"}, ["v1"]),
        ("/v2/demo/tags/list?ns=registry.example", {"OCI-Namespace": "quay.example"}, list(TAGS)),
        ("/v2/quay.example/demo/tags/list", {}, ["v1"]),
        ("/v2/v2/x/tags/list?ns=registry.example", {}, ["v1"]),
        ("/v2/registry.example/v2/x/tags/list", {}, ["v1"]),
        ("/v2/quay.example/demo/tags/list?ns=quay.example", {}, ["v1"]),
        ("/v2/quay.example/demo/tags/list?ns=QUAY.example", {}, ["v1"]),
        ("/v2/quay.example/demo/tags/list?ns=", {}, ["v1"]),
        ("/v2/quay.example/demo/tags/list", {"OCI-Namespace": "*"}, ["v1"]),
        ("/v2/demo/tags/list?ns=*", {"OCI-Namespace": "quay.example"}, ["v1"]),
    ],
)
async def test_the_registry_comes_from_query_header_or_path(
    client: httpx.AsyncClient, path: str, headers: dict[str, str], tags: list[str]
) -> None:
    response = await client.get(path, headers=headers)
    assert (response.status_code, response.json()["tags"]) == (200, tags)


class SlowStore(MemoryStore):
    """A store whose `describe` is fast enough for one digest, but not for many."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        self.calls += 1
        await asyncio.sleep(0.1)
        return await super().describe(digest)


@pytest.mark.parametrize("door", DOORS)
async def test_all_tags_share_one_timeout_of_the_store(door: str) -> None:
    store = SlowStore()
    for number in range(100):
        store.tag(Reference("registry.example", "demo", f"v{number}"), store.add(b"%d" % number))
    mirror = Mirror(store, MemoryRouter(), limits=Limits(first_byte_timeout=0.3))
    async with mirror, client_for(getattr(mirror, door)) as client:
        assert (await client.get("/v2/registry.example/demo/tags/list")).status_code == 503
        assert store.calls < 20
        assert mirror.metrics.limited.value("first_byte_timeout") == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
async def test_a_mirror_is_read_only(client: httpx.AsyncClient, host: InMemoryHost, method: str) -> None:
    response = await client.request(method, host.blob_path)
    assert (response.status_code, error_codes(response)) == (405, ["UNSUPPORTED"])
    assert response.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("door", DOORS)
async def test_requests_without_a_registry_use_the_default(door: str) -> None:
    async with in_memory_host(default_registry="quay.example") as host, client_for(host.door(door)) as client:
        assert (await client.get("/v2/demo/tags/list")).json()["tags"] == ["v1"]
        assert (await client.get("/v2/demo/manifests/v1")).content == host.manifest_data
        assert (await client.get("/v2/demo/tags/list?ns=registry.example")).json()["tags"] == list(TAGS)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("options", "path", "status"),
    [
        ({"registries": ["quay.example"]}, "quay.example/demo/manifests/v1", 200),
        ({"registries": ["quay.example"]}, "registry.example/demo/manifests/v1", 404),
        ({"registries": ["quay.example"]}, "registry.example/demo/manifests/{manifest}", 404),
        ({"registries": ["quay.example"]}, "registry.example/demo/blobs/{layer}", 404),
        ({"registries": ["quay.example"]}, "registry.example/demo/tags/list", 404),
        ({"registries": ["quay.example"]}, "demo/blobs/{layer}", 404),  # of a registry that is not known
        ({"exclude": [":latest$"]}, "registry.example/demo/manifests/latest", 404),
        ({"exclude": [":latest$"]}, "registry.example/demo/manifests/v1", 200),
        ({"exclude": [":latest$"]}, "registry.example/demo/manifests/{manifest}", 200),
        ({"exclude": ["^quay.example/"]}, "quay.example/demo/manifests/{manifest}", 404),
        ({"exclude": ["^quay.example/"]}, "quay.example/demo/blobs/{layer}", 404),
        ({"exclude": ["^quay.example/"]}, "demo/blobs/{layer}", 404),  # could be of quay.example
        ({"exclude": ["^quay.example/"]}, "registry.example/demo/blobs/{layer}", 200),
        ({}, "demo/blobs/{layer}", 200),
        ({"registries": ["quay.example"]}, "", 200),
    ],
)
async def test_only_selected_registries_and_names_are_served(
    door: str, options: dict[str, list[str]], path: str, status: int
) -> None:
    async with in_memory_host(**options) as host, client_for(host.door(door)) as client:
        response = await client.get("/v2/" + path.format(manifest=host.manifest.digest, layer=host.layer.digest))
        assert response.status_code == status
        if status == 404:
            assert error_codes(response) == ["NAME_UNKNOWN"]


@pytest.mark.parametrize("door", DOORS)
async def test_excluded_tags_are_not_listed(door: str) -> None:
    async with in_memory_host(exclude=[":latest$"]) as host, client_for(host.door(door)) as client:
        assert (await client.get("/v2/registry.example/demo/tags/list")).json()["tags"] == ["v1", "v2", "v3"]


async def test_by_default_the_local_door_leaves_only_tags_to_upstream(host: InMemoryHost) -> None:
    mirror = Mirror(host.store, MemoryRouter())
    async with mirror, client_for(mirror.local) as client:
        response = await client.head("/v2/registry.example/demo/manifests/v1")
        assert response.status_code == 404
        assert (await client.get(host.manifest_path)).content == host.manifest_data


class ForgetfulStore(MemoryStore):
    """A store with a tag whose manifest was removed, as after a garbage collection."""

    @override
    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        lost = (Reference("registry.example", "demo", "lost"), Descriptor(OCI_MANIFEST, Digest(ABSENT), 3))
        return [lost, *await super().images()]


@pytest.mark.parametrize("door", ["local", "peer"])
async def test_a_tag_without_its_manifest_is_not_listed(door: str) -> None:
    """A tag of something else than a manifest is not listed either: a GET of it is answered with 404."""
    store, manifest = ForgetfulStore(), json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST}).encode()
    store.tag(Reference("registry.example", "demo", "v1"), store.add(manifest))
    store.tag(Reference("registry.example", "demo", "layer"), store.add(b"a layer"))
    async with Mirror(store, MemoryRouter(), LocalResolver()) as mirror, client_for(getattr(mirror, door)) as client:
        answer = await client.get("/v2/registry.example/demo/tags/list")
        assert answer.json() == {"name": "registry.example/demo", "tags": ["v1"]}
        assert (await client.get("/v2/demo/tags/list?ns=registry.example")).json()["name"] == "demo"
