"""Of what type relayed content is said to be."""

from __future__ import annotations

import json

import pytest
from tests.relay.peers import honest, peers
from tests.relay.pulling import LARGE, SMALL, content, pulling

from peili.mirror import Digest
from peili.mirror.mediatypes import OCI_INDEX

pytestmark = pytest.mark.anyio

INDEX = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", ["manifests", "blobs"])
async def test_a_manifest_is_of_its_own_type_wherever_it_is_asked_for(method: str, kind: str) -> None:
    # containerd resolves a digest at /blobs/ when nobody has it at /manifests/ (a peer may come up in between). Of an
    # image that is application/octet-stream it would pull nothing else, and call that a success.
    async with peers(INDEX, honest) as [a], pulling([a.holder]) as host:
        pulled = await host.get(Digest.of(INDEX), kind=kind, method=method)
        assert pulled.status == 200
        assert pulled.headers["content-type"] == OCI_INDEX


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_any_other_blob_is_octets(size: int) -> None:
    data = content(size)
    async with peers(data, honest) as [a], pulling([a.holder]) as host:
        assert (await host.get(Digest.of(data))).headers["content-type"] == "application/octet-stream"
