"""The OCI layout store: what it serves, how it notices changes, and what it ignores."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import ANY

import pytest
from tests.mirror.doors.in_memory_host import client_for
from tests.support.waiting import until

from peili.mirror import ConfigError, Digest, Mirror, NotFound, Reference, Store, StoreUnavailable
from peili.mirror.oci.references import OCTET_STREAM
from peili.mirror.testing import Watched, entered, watching
from peili.mirror.testing.images import Image, make_layout
from peili.routers.memory import MemoryRouter
from peili.stores.oci_layout import OciLayoutStore

pytestmark = pytest.mark.anyio
DEMO = "docker.io/library/demo:v1"
NOTICED_WITHIN = 60.0
"""Seconds that a test waits for a change. The store needs at most 2 on a machine that is not busy."""


@asynccontextmanager
async def running(store: Store) -> AsyncGenerator[Watched]:
    async with entered(store), watching(store) as watched:
        yield watched


@asynccontextmanager
async def serving(path: Path, *, repository: str | None = None) -> AsyncGenerator[OciLayoutStore]:
    """Run a store, and wait for its first scan."""
    store = OciLayoutStore(path, repository=repository)
    async with running(store) as watched:
        await watched.until(lambda: watched.synced)
        yield store


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return make_layout(tmp_path / "layout", layers=[3000, 500], tags=[DEMO], seed=1)


async def test_every_blob_is_served_with_its_size_and_type(image: Image) -> None:
    async with serving(image.path) as store:
        assert await store.describe(image.manifest.digest) == image.manifest
        for blob in (image.config, *image.layers):
            described = await store.describe(blob.digest)
            assert (described.size, described.media_type) == (blob.size, OCTET_STREAM)


async def test_a_blob_is_read_byte_for_byte(image: Image) -> None:
    layer = image.layers[0]
    async with serving(image.path) as store, await store.open(layer.digest) as content:
        buffer = memoryview(bytearray(layer.size + 10))
        assert await content.readinto(0, buffer) == layer.size
        assert Digest.of(buffer[: layer.size]) == layer.digest
        fd = content.fileno()
        assert fd is not None
        assert os.pread(fd, 100, 7) == buffer[7:107]


async def test_tags_and_blobs_are_announced(image: Image) -> None:
    store = OciLayoutStore(image.path)
    async with running(store) as watched:
        await watched.until(lambda: watched.synced)
        assert watched.have.keys() == {blob.digest for blob in image.blobs} | {Reference.parse(DEMO)}
        assert await store.images() == [(Reference.parse(DEMO), image.manifest)]
        assert await store.resolve(Reference.parse(DEMO)) == image.manifest


async def test_an_index_leads_to_its_manifests(tmp_path: Path) -> None:
    image = make_layout(tmp_path, layers=[100], tags=[DEMO], platforms=["linux/amd64", "linux/arm64"])
    async with serving(tmp_path) as store:
        assert await store.resolve(Reference.parse(DEMO)) == image.target
        for manifest in image.manifests:
            assert await store.describe(manifest.descriptor.digest) == manifest.descriptor


@pytest.mark.parametrize(
    ("tag", "repository", "reference"),
    [
        pytest.param("7", None, None, id="a bare tag without a repository"),
        pytest.param("7", "docker.io/library/redis", "docker.io/library/redis:7", id="a bare tag in a repository"),
        pytest.param(DEMO, None, DEMO, id="a full reference"),
        pytest.param(DEMO, "docker.io/library/redis", DEMO, id="containerd's name wins"),
    ],
)
async def test_tags_become_references(tmp_path: Path, tag: str, repository: str | None, reference: str | None) -> None:
    make_layout(tmp_path, layers=[10], tags=[tag])
    async with serving(tmp_path, repository=repository) as store:
        assert [str(each) for each, _ in await store.images()] == ([reference] if reference else [])


async def test_names_in_nested_indexes_are_ignored(image: Image) -> None:
    foreign = {"io.containerd.image.name": "docker.io/library/redis:7"}
    entry = {"mediaType": image.manifest.media_type, "digest": image.manifest.digest, "size": image.manifest.size}
    nested = json.dumps({"schemaVersion": 2, "manifests": [{**entry, "annotations": foreign}]}).encode()
    digest = Digest.of(nested)
    image.blob_path(digest).write_bytes(nested)
    index = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": len(nested)}
    (image.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [index]}), encoding="utf-8")
    async with serving(image.path) as store:
        assert await store.images() == []
        assert (await store.describe(image.manifest.digest)).media_type == image.manifest.media_type


async def test_watchers_see_an_added_image_in_time(image: Image) -> None:
    store = OciLayoutStore(image.path)
    async with running(store) as watched:
        await watched.until(lambda: watched.synced)
        added = make_layout(image.path, layers=[77], tags=["docker.io/library/demo:v2"])
        await watched.until(lambda: added.target.digest in watched.have, within=NOTICED_WITHIN)
        await watched.until(lambda: Reference.parse("docker.io/library/demo:v2") in watched.have, within=NOTICED_WITHIN)
        assert await store.describe(added.layers[0].digest)


async def test_a_removed_blob_is_gone_in_time(image: Image) -> None:
    layer = image.layers[0]
    store = OciLayoutStore(image.path)
    async with running(store) as watched:
        await watched.until(lambda: layer.digest in watched.have)
        image.blob_path(layer.digest).unlink()
        with pytest.raises(NotFound):
            await store.open(layer.digest)
        await watched.until(lambda: layer.digest not in watched.have, within=NOTICED_WITHIN)
        assert image.manifest.digest in watched.have


async def test_many_changes_in_quick_succession_are_all_noticed(image: Image) -> None:
    store = OciLayoutStore(image.path)
    async with running(store) as watched:
        for n in range(20):
            make_layout(image.path, layers=[n], tags=[f"docker.io/library/demo:n{n}"])
            await asyncio.sleep(0.03)
        await watched.until(lambda: len(watched.have) == len(image.blobs) + 1 + 20 * 4)


async def test_the_store_waits_for_a_layout_that_appears_later(tmp_path: Path) -> None:
    path = tmp_path / "mount"
    store = OciLayoutStore(path)
    async with running(store) as watched:
        assert not store.ready()
        with pytest.raises(StoreUnavailable, match="mount"):
            await store.describe(Digest.of(b""))
        image = make_layout(path, layers=[10], tags=[DEMO])
        await watched.until(lambda: watched.synced)
        assert store.ready()
        assert await store.resolve(Reference.parse(DEMO)) == image.target


async def test_after_a_layout_was_away_watchers_only_receive_differences(image: Image) -> None:
    store = OciLayoutStore(image.path)
    away = image.path.with_name("away")
    async with running(store) as watched:
        await watched.until(lambda: watched.synced)
        before = len(watched.events)
        image.path.rename(away)
        await until(lambda: not store.ready())
        with pytest.raises(StoreUnavailable):
            await store.open(image.layers[0].digest)
        added = make_layout(away, layers=[9])
        away.rename(image.path)
        await watched.until(lambda: added.target.digest in watched.have)
        assert {event.key for event in watched.events[before:]} == {blob.digest for blob in added.blobs}  # type: ignore[attr-defined]


async def test_a_malformed_index_is_logged_once_and_the_last_good_one_stays(
    image: Image, caplog: pytest.LogCaptureFixture
) -> None:
    layer = image.layers[0]
    store = OciLayoutStore(image.path)
    async with running(store) as watched:
        await watched.until(lambda: layer.digest in watched.have)
        (image.path / "index.json").write_text("{", encoding="utf-8")
        await until(lambda: len(caplog.records) > 0)
        image.blob_path(layer.digest).unlink()
        await watched.until(lambda: layer.digest not in watched.have)  # there was another scan
        assert [record.args for record in caplog.records if "malformed" in record.msg] == [(image.path, ANY)]
        assert await store.resolve(Reference.parse(DEMO)) == image.target


async def test_a_store_without_a_valid_index_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("no", encoding="utf-8")
    store = OciLayoutStore(tmp_path)
    async with running(store) as watched:
        with pytest.raises(StoreUnavailable):
            await store.images()
        (tmp_path / "index.json").unlink()
        make_layout(tmp_path, layers=[1])
        await watched.until(lambda: watched.synced)


async def test_files_that_are_no_blobs_are_ignored(image: Image, tmp_path: Path) -> None:
    folder = image.path / "blobs" / "sha256"
    secret = tmp_path / "secret"
    secret.write_bytes(b"not for other hosts")
    linked, directory, fifo = (Digest.of(each) for each in (b"not for other hosts", b"directory", b"fifo"))
    (folder / "README").write_text("not a blob", encoding="utf-8")
    (folder / linked.encoded.upper()).write_bytes(b"upper case is no digest")
    (folder / linked.encoded).symlink_to(secret)
    (folder / directory.encoded).mkdir()
    os.mkfifo(folder / fifo.encoded)
    store = OciLayoutStore(image.path)
    async with running(store) as watched:
        await watched.until(lambda: watched.synced)
        assert len(watched.have) == len(image.blobs) + 1
        for digest in (linked, directory, fifo):
            with pytest.raises(NotFound):
                await store.open(digest)


async def test_a_linked_blobs_directory_is_not_followed(image: Image, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    shutil.copy(image.path / "index.json", hostile)
    (hostile / "blobs").symlink_to(image.path / "blobs")
    async with serving(hostile) as store:
        with pytest.raises(NotFound):
            await store.open(image.layers[0].digest)


async def test_a_blob_replaced_by_a_link_is_not_opened(image: Image, tmp_path: Path) -> None:
    layer = image.layers[0]
    async with serving(image.path) as store:
        path = image.blob_path(layer.digest)
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(NotFound):
            await store.open(layer.digest)


async def test_a_blob_that_is_being_copied_is_not_announced(image: Image) -> None:
    layer = image.layers[0]
    path = image.blob_path(layer.digest)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    store = OciLayoutStore(image.path)
    async with running(store) as watched:
        await watched.until(lambda: watched.synced)
        assert layer.digest not in watched.have
        with path.open("ab") as file:
            file.write(whole[1000:])
        await watched.until(lambda: layer.digest in watched.have, within=NOTICED_WITHIN)


async def test_an_unreferenced_blob_is_announced_later(image: Image) -> None:
    loose = Digest.of(b"loose")
    store = OciLayoutStore(image.path)
    async with running(store) as watched:
        await watched.until(lambda: watched.synced)
        path = image.blob_path(loose)
        path.write_bytes(b"loose")
        await watched.until(lambda: loose in watched.have)
        assert (await store.describe(loose)).media_type == OCTET_STREAM


@pytest.mark.parametrize("what", ["layer", "manifest"])
async def test_a_corrupt_file_is_not_served_until_it_changes(
    image: Image, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    blob = image.layers[0] if what == "layer" else image.manifest
    path = image.blob_path(blob.digest)
    right = path.read_bytes()
    path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    store = OciLayoutStore(image.path)
    async with running(store) as watched:
        await watched.until(lambda: watched.synced)
        opened = await asyncio.gather(*(store.open(blob.digest) for _ in range(5)), return_exceptions=True)
        assert [type(each) for each in opened] == [NotFound] * 5
        await watched.until(lambda: blob.digest not in watched.have)
        for call in (store.open(blob.digest), store.describe(blob.digest)):
            with pytest.raises(NotFound):
                await call
        if what == "manifest":
            assert Reference.parse(DEMO) not in watched.have
            assert await store.images() == []
            with pytest.raises(NotFound):
                await store.resolve(Reference.parse(DEMO))
        assert caplog.text.count("does not match the digest; it is not served") == 1
        path.write_bytes(right)  # in place, so that the directory does not change
        await watched.until(lambda: blob.digest in watched.have)
        async with await store.open(blob.digest) as content:
            assert content.size == blob.size
        assert (await store.describe(blob.digest)).size == blob.size


async def test_one_store_can_be_entered_again(image: Image) -> None:
    store = OciLayoutStore(image.path)
    for _ in range(2):
        async with running(store):
            await until(store.ready)
        assert not store.ready()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "path: the directory"),
        ({"path": 3}, "path: the directory"),
        ({"path": "/x", "repository": "redis"}, "repository: a full name"),
        ({"path": "/x", "repository": 1}, "repository: a full name"),
        ({"path": "/x", "pth": 1}, "pth: unknown option"),
        ({"path": "/x", "verify": "no"}, "verify: true or false"),
    ],
)
def test_the_error_for_a_wrong_option_names_it(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OciLayoutStore.from_config(config)


async def test_the_store_serves_one_mirror_at_a_time(image: Image) -> None:
    async with serving(image.path) as store:
        with pytest.raises(RuntimeError, match="running already"):
            async with entered(store):
                pass
        assert store.ready()
        assert await store.describe(image.manifest.digest) == image.manifest


async def test_without_verify_no_file_is_hashed(image: Image) -> None:
    layer = image.layers[0]
    path = image.blob_path(layer.digest)
    path.write_bytes(bytes(layer.size))
    store = OciLayoutStore.from_config({"path": str(image.path), "verify": False})
    async with running(store) as watched:
        await watched.until(lambda: watched.synced)
        async with await store.open(layer.digest) as content:
            assert content.size == layer.size


@pytest.mark.parametrize("door", ["local", "peer"])
async def test_no_door_serves_a_corrupt_file(image: Image, door: str) -> None:
    layer = image.layers[0]
    path = image.blob_path(layer.digest)
    right = path.read_bytes()
    path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    store = OciLayoutStore(image.path)
    url = f"/v2/docker.io/library/demo/blobs/{layer.digest}"
    async with Mirror(store, MemoryRouter()) as mirror:
        await until(store.ready)
        app = mirror.local if door == "local" else mirror.peer
        async with client_for(app) as client:
            assert (await client.get(url)).status_code == 404
            path.write_bytes(right)
            deadline = time.monotonic() + 20
            while (answer := await client.get(url)).status_code != 200:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            assert answer.content == right
