"""The methods of the memory store that `Store` does not have. tests/conformance checks the others."""

from __future__ import annotations

import asyncio

import pytest

from peili.mirror import Aborted, ConfigError, Descriptor, Digest, NotFound, Reference, Store
from peili.mirror.oci.references import OCI_INDEX
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio
TAG = Reference("docker.io", "library/demo", "v1")


async def read_all(store: Store, digest: Digest, *, partial: bool = False) -> bytes:
    """Read the whole content, and wait for bytes that are not available yet."""
    data = bytearray()
    async with await store.open(digest, partial=partial) as content:
        while not content.complete or len(data) < content.available:
            await content.wait(len(data))
            piece = memoryview(bytearray(7))
            data += piece[: await content.readinto(len(data), piece)]
    return bytes(data)


async def test_added_content_can_be_read() -> None:
    store = MemoryStore()
    descriptor = store.add(b"twenty-one bytes of it")
    assert await store.describe(descriptor.digest) == descriptor
    assert await read_all(store, descriptor.digest) == b"twenty-one bytes of it"


async def test_the_media_type_of_a_manifest_is_detected() -> None:
    assert MemoryStore().add(b'{"schemaVersion": 2, "manifests": []}').media_type == OCI_INDEX


async def test_a_tag_of_missing_content_is_an_error() -> None:
    store = MemoryStore()
    with pytest.raises(ValueError, match="is not here"):
        store.tag(TAG, Descriptor("text/plain", Digest.of(b"elsewhere"), 9))


async def test_removing_content_removes_its_tags() -> None:
    store = MemoryStore()
    descriptor = store.add(b"data")
    store.tag(TAG, descriptor)
    assert await store.images() == [(TAG, descriptor)]
    store.remove(descriptor.digest)
    assert await store.images() == []
    with pytest.raises(NotFound):
        await store.resolve(TAG)


async def test_an_ingest_is_read_while_it_grows() -> None:
    store = MemoryStore()
    ingest = store.begin(Digest.of(b"first second"), 12)
    reading = asyncio.create_task(read_all(store, ingest.digest, partial=True))
    for piece in (b"first ", b"second"):
        await asyncio.sleep(0)
        ingest.write(piece)
    ingest.commit()
    assert await reading == b"first second"
    assert (await store.describe(ingest.digest)).size == 12


async def test_commit_of_wrong_content_is_aborted() -> None:
    store = MemoryStore()
    ingest = store.begin(Digest.of(b"right"))
    content = await store.open(ingest.digest, partial=True)
    ingest.write(b"wrong")
    with pytest.raises(Aborted):
        ingest.commit()
    with pytest.raises(Aborted):
        await content.wait(5)
    with pytest.raises(NotFound):
        await store.open(ingest.digest, partial=True)


async def test_an_ingest_is_not_longer_than_its_size() -> None:
    ingest = MemoryStore().begin(Digest.of(b"right"), 5)
    with pytest.raises(ValueError, match="longer than its 5 bytes"):
        ingest.write(b"right!")


async def test_a_digest_has_one_ingest_at_a_time() -> None:
    store = MemoryStore()
    ingest = store.begin(Digest.of(b"right"))
    with pytest.raises(ValueError, match="already an ingest"):
        store.begin(ingest.digest)
    ingest.abort()
    store.begin(ingest.digest)


async def test_aclose_wakes_a_waiting_call() -> None:
    store = MemoryStore()
    content = await store.open(store.begin(Digest.of(b"right")).digest, partial=True)
    waiting = asyncio.create_task(content.wait(0))
    await asyncio.sleep(0)
    await content.aclose()
    with pytest.raises(ValueError, match="closed"):
        await waiting


def test_the_memory_store_has_no_options() -> None:
    with pytest.raises(ConfigError, match="path"):
        MemoryStore.from_config({"path": "/tmp"})
