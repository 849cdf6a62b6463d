"""A door opens no file for a manifest that it has sent before, and sends it only while the store has it."""

from __future__ import annotations

import httpx
import pytest
from typing_extensions import override

from peili.mirror import Content, Digest, Limits, Mirror
from peili.mirror.doors.manifest_memory import ManifestMemory
from peili.mirror.oci.references import OCI_MANIFEST
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

MANIFEST = b'{"schemaVersion": 2, "mediaType": "%s", "layers": []}' % OCI_MANIFEST.encode()
DIGEST = Digest.of(MANIFEST)
URL = f"http://localhost/v2/demo/manifests/{DIGEST}"


class CountingStore(MemoryStore):
    """Counts how often content is opened."""

    opened = 0

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        self.opened += 1
        return await super().open(digest, partial=partial)


async def get(mirror: Mirror, headers: dict[str, str] | None = None) -> httpx.Response:
    transport = httpx.ASGITransport(mirror.local)
    async with httpx.AsyncClient(transport=transport) as client:
        return await client.get(URL, headers=headers)


async def test_a_manifest_is_opened_once_and_gone_with_the_store() -> None:
    store = CountingStore()
    store.add(MANIFEST)
    async with Mirror(store, StaticRouter([])) as mirror:
        for _ in range(3):
            assert (await get(mirror)).content == MANIFEST
        part = await get(mirror, {"Range": "bytes=2-5"})
        assert (part.status_code, part.content) == (206, MANIFEST[2:6])
        assert store.opened == 1
        store.remove(DIGEST)
        assert (await get(mirror)).status_code == 404


async def test_without_memory_each_request_opens_it() -> None:
    store = CountingStore()
    store.add(MANIFEST)
    async with Mirror(store, StaticRouter([]), limits=Limits(manifest_memory=1)) as mirror:
        for _ in range(3):
            assert (await get(mirror)).content == MANIFEST
        assert store.opened == 3


def test_those_not_asked_for_longest_are_forgotten() -> None:
    contents = [bytes([number]) * 10 for number in range(4)]
    digests = [Digest.of(each) for each in contents]
    memory = ManifestMemory(30)
    for digest, data in zip(digests[:3], contents, strict=False):
        memory.add(digest, data)
    assert memory.get(digests[0]) == contents[0]
    memory.add(digests[3], contents[3])
    assert [memory.get(each) for each in digests] == [contents[0], None, contents[2], contents[3]]


def test_wrong_bytes_are_not_remembered() -> None:
    memory = ManifestMemory(100)
    memory.add(DIGEST, b"wrong")
    assert memory.get(DIGEST) is None
