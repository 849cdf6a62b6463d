"""The media type of relayed content."""

from __future__ import annotations

import json

import pytest
from tests.mirror.relay.peers import Exchange, honest, peers
from tests.mirror.relay.pulling import LARGE, SMALL, content, path_of, pulling

from peili.mirror import Digest
from peili.mirror.oci.references import OCI_INDEX, OCI_MANIFEST, OCTET_STREAM

pytestmark = pytest.mark.anyio

INDEX = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", ["manifests", "blobs"])
async def test_a_manifest_has_its_own_type_at_every_path(method: str, kind: str) -> None:
    # containerd resolves a digest at /blobs/ if no peer has it at /manifests/ (a peer may come up in between). If that
    # were application/octet-stream, containerd would not pull the rest of the image, and would report success.
    async with peers(INDEX, honest) as [a], pulling([a.holder]) as host:
        pulled = await host.get(Digest.of(INDEX), kind=kind, method=method)
        assert pulled.status == 200
        assert pulled.headers["content-type"] == OCI_INDEX


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_any_other_blob_is_octet_stream(size: int) -> None:
    data = content(size)
    async with peers(data, honest) as [a], pulling([a.holder]) as host:
        assert (await host.get(Digest.of(data))).headers["content-type"] == "application/octet-stream"


UNKNOWN = "application/vnd.example.thing.v1+json"
THING = json.dumps({"mediaType": UNKNOWN, "blobs": [], "x": "y" * 300}).encode()


@pytest.mark.parametrize("claimed", [UNKNOWN, OCI_MANIFEST, OCTET_STREAM, "text/html", ""])
async def test_a_manifest_of_an_unknown_type_has_the_type_that_it_states(claimed: str) -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.request.method == "GET":
            await exchange.head(content_type=claimed)
            await exchange.send(exchange.body)
        else:
            await honest(exchange)

    async with peers(THING, script) as [a], pulling([a.holder]) as host:
        for method in ("GET", "HEAD"):
            pulled = await host.get(Digest.of(THING), kind="manifests", method=method)
            assert (pulled.status, pulled.body) == (200, THING if method == "GET" else b"")
            assert pulled.headers["content-type"] == UNKNOWN
            assert pulled.headers["content-length"] == str(len(THING))
        part = await host.get(Digest.of(THING), "bytes=1-9", kind="manifests")
        assert (part.status, part.body, part.headers["content-type"]) == (206, THING[1:10], UNKNOWN)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_json_that_states_a_type_is_octet_stream_as_a_blob(method: str) -> None:
    async with peers(THING, honest) as [a], pulling([a.holder]) as host:
        pulled = await host.get(Digest.of(THING), method=method)
        assert (pulled.status, pulled.headers["content-type"]) == (200, OCTET_STREAM)


async def test_wrong_bytes_get_no_media_type() -> None:
    other = THING.replace(b"vnd.example", b"vnd.exampl3")

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send(other)

    async with peers(THING, script, honest) as [a, b], pulling([a.holder, b.holder]) as host:
        pulled = await host.get(Digest.of(THING), kind="manifests")
        assert (pulled.body, pulled.headers["content-type"]) == (THING, UNKNOWN)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("stated", ["text", "a/b; c=d", "a/b\r\nX: y", "a/" + "b" * 200, 7, None])
async def test_json_without_a_valid_media_type_is_not_a_manifest(stated: object, method: str) -> None:
    data = json.dumps({"schemaVersion": 2, "mediaType": stated}).encode()

    async def script(exchange: Exchange) -> None:
        await exchange.head(content_type=UNKNOWN)
        if exchange.request.method == "GET":
            await exchange.send(exchange.body)

    async with peers(data, script) as [a], pulling([a.holder]) as host:
        response = await host.client.request(method, path_of(Digest.of(data), "manifests"))
        assert response.status_code == 404
