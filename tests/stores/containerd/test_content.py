"""Opening and describing complete blobs, from containerd's files and through its API."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.stores.containerd.helpers import read_all, ready
from tests.stores.containerd.namespace import Namespace, new_namespace

from peili.mirror import Aborted, Digest, NotFound
from peili.mirror.oci.references import OCI_INDEX, OCI_MANIFEST, OCTET_STREAM
from peili.stores.containerd import ContainerdStore

pytestmark = pytest.mark.anyio

ABSENT = Digest.of(b"nobody has this")
BY_FILE = "from its file"
BY_API = "through the API"


@pytest.fixture(params=[BY_FILE, BY_API])
async def store(request: pytest.FixtureRequest, namespace: Namespace) -> AsyncGenerator[ContainerdStore]:
    nowhere = namespace.directory / "not-mounted-here"
    store = namespace.store(content_path=nowhere if request.param == BY_API else None)
    async with ready(store):
        yield store


async def test_every_blob_of_an_imported_image_is_served(store: ContainerdStore, namespace: Namespace) -> None:
    image = await namespace.load(layers=(3_000_000, 10))
    for blob in image.blobs:
        async with await store.open(blob.digest) as content:
            assert content.complete
            assert content.size == content.available == blob.size
            assert Digest.of(await read_all(content)) == blob.digest


async def test_a_blob_that_containerd_has_noted_the_source_of_was_fetched(
    store: ContainerdStore, namespace: Namespace
) -> None:
    image = await namespace.load()
    digest = image.target.digest
    assert [await store.was_fetched(each.digest) for each in image.blobs] == [False] * len(image.blobs)
    await namespace.ctr("content", "label", digest, "containerd.io/distribution.source.docker.io=library/demo")
    assert await store.was_fetched(digest)
    with pytest.raises(NotFound):
        await store.was_fetched(ABSENT)


async def test_a_read_starts_at_any_offset_and_stops_at_the_end(store: ContainerdStore, namespace: Namespace) -> None:
    data = os.urandom(3_000_000)
    buffer = memoryview(bytearray(1000))
    async with await store.open(await namespace.put(data)) as content:
        for offset in (0, 1, 999_999, 2_999_000):
            assert await content.readinto(offset, buffer) == 1000
            assert buffer == data[offset : offset + 1000]
        assert await content.readinto(2_999_990, buffer) == 10
        assert buffer[:10] == data[-10:]
        assert [await content.readinto(offset, buffer) for offset in (3_000_000, 9_000_000)] == [0, 0]
        assert await content.wait(3_000_000) == 3_000_000


async def test_only_content_from_a_file_has_a_descriptor(namespace: Namespace) -> None:
    data = os.urandom(100)
    digest = await namespace.put(data)
    by_file, by_api = namespace.store(), namespace.store(content_path=namespace.directory)
    async with ready(by_file), ready(by_api), await by_file.open(digest) as file, await by_api.open(digest) as api:
        fd = file.fileno()
        assert fd is not None
        assert os.pread(fd, 1000, 0) == data
        assert api.fileno() is None


async def test_an_unknown_digest_is_not_found(store: ContainerdStore) -> None:
    for call in (store.describe(ABSENT), store.open(ABSENT), store.open(ABSENT, partial=True)):
        with pytest.raises(NotFound):
            await call


async def test_a_blob_of_another_namespace_is_not_found(store: ContainerdStore, namespace: Namespace) -> None:
    other = new_namespace(namespace.containerd, namespace.directory)
    digest = await other.put(os.urandom(100))
    assert (namespace.content / "blobs" / "sha256" / digest.encoded).exists()
    for call in (store.describe(digest), store.open(digest), store.open(digest, partial=True)):
        with pytest.raises(NotFound):
            await call


async def test_new_content_is_found_before_the_next_list(store: ContainerdStore, namespace: Namespace) -> None:
    data = os.urandom(100)
    digest = await namespace.put(data)
    assert (await store.describe(digest)).size == 100
    async with await store.open(digest) as content:
        assert await read_all(content) == data


async def test_a_manifest_is_described_with_its_own_media_type(store: ContainerdStore, namespace: Namespace) -> None:
    image = await namespace.load(platforms=("linux/amd64", "linux/arm64"))
    expected = {
        image.target.digest: OCI_INDEX,
        image.manifests[0].descriptor.digest: OCI_MANIFEST,
        image.manifests[1].descriptor.digest: OCI_MANIFEST,
        image.config.digest: OCTET_STREAM,
        image.layers[0].digest: OCTET_STREAM,
    }
    for _ in ("read", "remembered"):
        assert {digest: (await store.describe(digest)).media_type for digest in expected} == expected
    assert (await store.describe(image.target.digest)).size == image.target.size


async def test_content_too_large_for_a_manifest_is_not_parsed(store: ContainerdStore, namespace: Namespace) -> None:
    manifest = b'{"schemaVersion": 2, "manifests": [], "filling": "' + os.urandom(2 << 20).hex().encode() + b'"}'
    assert (await store.describe(await namespace.put(manifest))).media_type == OCTET_STREAM


async def test_open_content_can_be_read_after_its_removal(namespace: Namespace) -> None:
    data = os.urandom(2_000_000)
    store = namespace.store()
    async with ready(store), await store.open(await namespace.put(data)) as content:
        await namespace.ctr("content", "rm", Digest.of(data))
        assert await read_all(content) == data


async def test_content_removed_while_it_is_read_through_the_api_is_aborted(namespace: Namespace) -> None:
    store = namespace.store(content_path=namespace.directory)
    digest = await namespace.put(os.urandom(100))
    async with ready(store), await store.open(digest) as content:
        await namespace.ctr("content", "rm", digest)
        with pytest.raises(Aborted, match="removed"):
            await content.readinto(0, memoryview(bytearray(100)))


async def test_a_file_of_another_size_is_not_used(namespace: Namespace, tmp_path: Path) -> None:
    data = os.urandom(100)
    digest = await namespace.put(data)
    wrong = tmp_path / "blobs" / "sha256" / digest.encoded
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(os.urandom(101))
    store = namespace.store(content_path=tmp_path)
    async with ready(store), await store.open(digest) as content:
        assert await read_all(content) == data
