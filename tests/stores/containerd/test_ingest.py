"""Ingests: blobs that a real containerd is still writing."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from tests.stores.containerd.helpers import PROMPT, eventually, read_all, ready
from tests.stores.containerd.namespace import Namespace, new_namespace

from peili.mirror import Aborted, Content, Digest, NotFound
from peili.mirror.content.files import open_below
from peili.mirror.testing import watching
from peili.stores.containerd import ContainerdStore
from peili.stores.containerd import content as content_module

pytestmark = pytest.mark.anyio

MIB = 1 << 20
SIZE = 5 * MIB + 12_345


@pytest.fixture
def data() -> bytes:
    return os.urandom(SIZE)


async def test_an_ingest_is_served_while_it_grows(store: ContainerdStore, namespace: Namespace, data: bytes) -> None:
    async with namespace.writing(data) as writer:
        await writer.write(data[: 2 * MIB])
        async with await store.open(writer.digest, partial=True) as content:
            assert (content.available, content.size, content.complete) == (2 * MIB, SIZE, False)
            waiting = asyncio.create_task(content.wait(2 * MIB))
            await writer.write(data[2 * MIB : 4 * MIB])
            assert 2 * MIB < await waiting <= 4 * MIB
            assert not content.complete
            reading = asyncio.create_task(read_all(content))
            await writer.write(data[4 * MIB :])
            await writer.commit()
            assert await reading == data
            assert (content.available, content.size, content.complete) == (SIZE, SIZE, True)
        async with await store.open(writer.digest, partial=True) as content:
            assert content.complete


async def test_the_descriptor_of_an_ingest_has_the_available_bytes(
    store: ContainerdStore, namespace: Namespace, data: bytes
) -> None:
    async with namespace.writing(data) as writer:
        await writer.write(data[:MIB])
        async with await store.open(writer.digest, partial=True) as content:
            fd = content.fileno()
            assert fd is not None
            assert os.pread(fd, 2 * MIB, 0) == data[:MIB]


async def test_an_ingest_is_not_found_as_complete_content(
    store: ContainerdStore, namespace: Namespace, data: bytes
) -> None:
    async with namespace.writing(data) as writer:
        await writer.write(data)
        for call in (store.open(writer.digest), store.describe(writer.digest)):
            with pytest.raises(NotFound):
                await call


async def test_an_ingest_is_not_found_in_another_namespace(
    store: ContainerdStore, namespace: Namespace, data: bytes
) -> None:
    other = new_namespace(namespace.containerd, namespace.directory)
    async with other.writing(data) as writer:
        await writer.write(data[:MIB])
        with pytest.raises(NotFound):
            await store.open(writer.digest, partial=True)
        assert not await store.discard(writer.digest)


async def test_an_ingest_is_not_found_without_access_to_the_directory(namespace: Namespace, data: bytes) -> None:
    store = namespace.store(content_path=namespace.directory / "nowhere")
    async with ready(store), namespace.writing(data) as writer:
        await writer.write(data[:MIB])
        with pytest.raises(NotFound):
            await store.open(writer.digest, partial=True)


@pytest.mark.parametrize("key", ["layer-", "manifest-", "index-", "config-", "layer-docker.io/library/demo:v1@"])
async def test_an_ingest_is_found_under_every_ref_that_pulls_use(
    store: ContainerdStore, namespace: Namespace, data: bytes, key: str
) -> None:
    async with namespace.writing(data, key) as writer:
        async with await store.open(writer.digest, partial=True) as content:
            assert (content.available, content.complete) == (0, False)
        assert await store.discard(writer.digest)


async def test_the_ingest_of_a_client_that_died_can_be_read_and_continued(
    store: ContainerdStore, namespace: Namespace, data: bytes
) -> None:
    async with watching(store) as watched, namespace.writing(data) as writer:
        await writer.write(data[: 3 * MIB])
        await watched.until(lambda: writer.digest in watched.have, within=PROMPT)
        content = await store.open(writer.digest, partial=True)
    async with content:
        piece = memoryview(bytearray(1000))
        assert await content.readinto(MIB, piece) == 1000
        assert piece == data[MIB : MIB + 1000]
        assert await content.readinto(3 * MIB, piece) == 0
        await assert_aborted(content)
        async with namespace.writing(data) as writer:  # the next pull continues it
            writer.continue_at(3 * MIB)
            await writer.write(data[3 * MIB :])
            await writer.commit()
        assert await read_all(content) == data


async def test_of_two_ingests_the_most_recently_written_is_opened(
    store: ContainerdStore, namespace: Namespace, data: bytes
) -> None:
    async with namespace.writing(data, "layer-") as stalled, namespace.writing(data, "layer-other@") as growing:
        await stalled.write(data[: 3 * MIB])
        for path in (namespace.content / "ingest").glob("*/data"):
            if path.stat().st_size == 3 * MIB:
                os.utime(path, (1, 1))  # the clock of files is coarse: both writes might have the same time
        await growing.write(data[:MIB])
        async with await store.open(growing.digest, partial=True) as content:
            assert content.available == MIB


async def assert_aborted(content: Content) -> None:
    with pytest.raises(Aborted):
        async with asyncio.timeout(PROMPT):
            await content.wait(content.available)


async def test_discard_aborts_the_ingest_for_its_readers(
    store: ContainerdStore, namespace: Namespace, data: bytes
) -> None:
    async with namespace.writing(data) as writer:
        await writer.write(data[:MIB])
        async with await store.open(writer.digest, partial=True) as content:
            assert await store.discard(writer.digest)
            await assert_aborted(content)
            assert content.available == MIB
        with pytest.raises(NotFound):
            await store.open(writer.digest, partial=True)
        assert not await store.discard(writer.digest)


async def test_discard_removes_none_of_several_ingests(
    namespace: Namespace, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    other = new_namespace(namespace.containerd, namespace.directory)
    store = ContainerdStore(str(namespace.containerd.socket), namespaces=[namespace.name, other.name])
    async with ready(store), namespace.writing(data) as ours:
        async with other.writing(data) as theirs:
            await ours.write(data[:MIB])
            await theirs.write(data[:MIB])
            assert not await store.discard(ours.digest)
            assert "none of 2 ingests is removed" in caplog.text
            await theirs.write(data[MIB:])
            await theirs.commit()
        assert await store.discard(ours.digest), "now there is only one"
        async with await store.open(ours.digest) as content:
            assert await read_all(content) == data


async def test_a_cancelled_open_leaves_no_file_open(
    namespace: Namespace, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, go_on, opened = threading.Event(), threading.Event(), list[Path]()

    def open_slowly(root: Path, path: Path) -> int:
        called.set()
        assert go_on.wait(60)
        fd = open_below(root, path)
        opened.append(Path(f"/proc/self/fd/{fd}"))
        return fd

    monkeypatch.setattr(content_module, "open_below", open_slowly)
    store = namespace.store()
    async with ready(store), namespace.writing(data) as writer:
        await writer.write(data[:MIB])
        opening = asyncio.create_task(store.open(writer.digest, partial=True))
        await eventually(called.is_set, "the file is about to be opened")
        opening.cancel()
        await asyncio.wait([opening])
        assert opening.cancelled()
        go_on.set()
        await eventually(lambda: opened, "the file is opened")
        await eventually(lambda: not is_ingest_file(opened[0]), "the file is closed")


def is_ingest_file(link: Path) -> bool:
    """Return whether `link`, of a descriptor, leads to the file of an ingest."""
    try:
        return link.readlink().parts[-3:-2] == ("ingest",)
    except FileNotFoundError:
        return False


async def test_discard_keeps_complete_content(store: ContainerdStore, namespace: Namespace, data: bytes) -> None:
    digest = await namespace.put(data)
    assert not await store.discard(digest)
    async with await store.open(digest) as content:
        assert Digest.of(await read_all(content)) == digest


async def test_an_ingest_whose_file_gets_shorter_is_aborted(
    store: ContainerdStore, namespace: Namespace, data: bytes
) -> None:
    async with namespace.writing(data) as writer:
        await writer.write(data[: 3 * MIB])
        async with await store.open(writer.digest, partial=True) as content:
            refs = [ref for ref in namespace.content.glob("ingest/*/ref") if ref.read_text().endswith(writer.digest)]
            os.truncate(refs[0].with_name("data"), MIB)
            with pytest.raises(Aborted):
                await content.readinto(2 * MIB, memoryview(bytearray(10)))
            await assert_aborted(content)
            assert content.available == 3 * MIB
