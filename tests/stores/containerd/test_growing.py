"""Content that is still arriving: real ingests of a real containerd."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.stores.containerd.running import PROMPT, eventually, read_all, ready
from tests.stores.containerd.tenant import Tenant, new_tenant

from peili.mirror import Aborted, Content, Digest, NotFound
from peili.mirror.content.files import open_regular
from peili.stores.containerd import ContainerdStore, ingest

pytestmark = pytest.mark.anyio

MIB = 1 << 20
SIZE = 5 * MIB + 12_345


@pytest.fixture
async def store(tenant: Tenant) -> AsyncGenerator[ContainerdStore]:
    store = tenant.store()
    async with ready(store):
        yield store


@pytest.fixture
def data() -> bytes:
    return os.urandom(SIZE)


async def test_it_is_served_as_it_arrives(store: ContainerdStore, tenant: Tenant, data: bytes) -> None:
    async with tenant.writing(data) as writer:
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


async def test_its_file_has_what_is_available(store: ContainerdStore, tenant: Tenant, data: bytes) -> None:
    async with tenant.writing(data) as writer:
        await writer.write(data[:MIB])
        async with await store.open(writer.digest, partial=True) as content:
            fd = content.fileno()
            assert fd is not None
            assert os.pread(fd, 2 * MIB, 0) == data[:MIB]


async def test_it_is_not_there_for_those_who_want_it_whole(store: ContainerdStore, tenant: Tenant, data: bytes) -> None:
    async with tenant.writing(data) as writer:
        await writer.write(data)
        for asking in (store.open(writer.digest), store.describe(writer.digest)):
            with pytest.raises(NotFound):
                await asking


async def test_it_is_not_there_in_another_namespace(store: ContainerdStore, tenant: Tenant, data: bytes) -> None:
    other = new_tenant(tenant.containerd, tenant.directory)
    async with other.writing(data) as writer:
        await writer.write(data[:MIB])
        with pytest.raises(NotFound):
            await store.open(writer.digest, partial=True)
        assert not await store.discard(writer.digest)


async def test_it_is_not_there_where_the_directory_cannot_be_read(tenant: Tenant, data: bytes) -> None:
    store = tenant.store(content_path=tenant.directory / "nowhere")
    async with ready(store), tenant.writing(data) as writer:
        await writer.write(data[:MIB])
        with pytest.raises(NotFound):
            await store.open(writer.digest, partial=True)


@pytest.mark.parametrize("key", ["layer-", "manifest-", "index-", "config-", "layer-docker.io/library/demo:v1@"])
async def test_it_is_found_under_every_key_that_pulls_use(
    store: ContainerdStore, tenant: Tenant, data: bytes, key: str
) -> None:
    async with tenant.writing(data, key) as writer:
        async with await store.open(writer.digest, partial=True) as content:
            assert (content.available, content.complete) == (0, False)
        assert await store.discard(writer.digest)


async def test_a_client_that_died_leaves_what_had_arrived(store: ContainerdStore, tenant: Tenant, data: bytes) -> None:
    async with tenant.writing(data) as writer:
        await writer.write(data[: 3 * MIB])
    async with await store.open(writer.digest, partial=True) as content:
        piece = memoryview(bytearray(1000))
        assert await content.readinto(MIB, piece) == 1000
        assert piece == data[MIB : MIB + 1000]
        assert await content.readinto(3 * MIB, piece) == 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(content.wait(content.available), 0.1)
        async with tenant.writing(data) as writer:  # the next pull continues it
            writer.continue_at(3 * MIB)
            await writer.write(data[3 * MIB :])
            await writer.commit()
        assert await read_all(content) == data


async def test_of_two_the_one_that_still_grows_is_opened(store: ContainerdStore, tenant: Tenant, data: bytes) -> None:
    async with tenant.writing(data, "layer-") as silent, tenant.writing(data, "layer-other@") as alive:
        await silent.write(data[: 3 * MIB])
        await alive.write(data[:MIB])
        async with await store.open(alive.digest, partial=True) as content:
            assert content.available == MIB


async def assert_aborted(content: Content) -> None:
    with pytest.raises(Aborted):
        async with asyncio.timeout(PROMPT):
            await content.wait(content.available)


async def test_discarding_aborts_it_for_its_readers(store: ContainerdStore, tenant: Tenant, data: bytes) -> None:
    async with tenant.writing(data) as writer:
        await writer.write(data[:MIB])
        async with await store.open(writer.digest, partial=True) as content:
            assert await store.discard(writer.digest)
            await assert_aborted(content)
            assert content.available == MIB
        with pytest.raises(NotFound):
            await store.open(writer.digest, partial=True)
        assert not await store.discard(writer.digest)


async def test_discarding_leaves_alone_what_may_be_another_clients(
    tenant: Tenant, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    other = new_tenant(tenant.containerd, tenant.directory)
    store = ContainerdStore(str(tenant.containerd.socket), namespaces=[tenant.namespace, other.namespace])
    async with ready(store), tenant.writing(data) as ours:
        async with other.writing(data) as theirs:
            await ours.write(data[:MIB])
            await theirs.write(data[:MIB])
            assert not await store.discard(ours.digest)
            assert "2 unfinished copies" in caplog.text
            await theirs.write(data[MIB:])
            await theirs.commit()
        assert await store.discard(ours.digest), "now there is no doubt"
        async with await store.open(ours.digest) as content:
            assert await read_all(content) == data


async def test_an_opening_that_is_cancelled_leaves_no_file_open(
    tenant: Tenant, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on, opened = threading.Event(), threading.Event(), list[Path]()

    def slowly(path: Path) -> int:
        asked.set()
        assert go_on.wait(60)
        fd = open_regular(path)
        opened.append(Path(f"/proc/self/fd/{fd}"))
        return fd

    monkeypatch.setattr(ingest, "open_regular", slowly)
    store = tenant.store()
    async with ready(store), tenant.writing(data) as writer:
        await writer.write(data[:MIB])
        opening = asyncio.create_task(store.open(writer.digest, partial=True))
        await eventually(asked.is_set, "its file is about to be opened")
        opening.cancel()
        await asyncio.wait([opening])
        assert opening.cancelled()
        go_on.set()
        await eventually(lambda: opened, "its file is opened")
        await eventually(lambda: not is_of_an_ingest(opened[0]), "its file is closed")


def is_of_an_ingest(link: Path) -> bool:
    """Whether a descriptor's `link` leads to the file of an unfinished blob."""
    try:
        return link.readlink().parts[-3:-2] == ("ingest",)
    except FileNotFoundError:
        return False


async def test_discarding_leaves_alone_what_is_whole(store: ContainerdStore, tenant: Tenant, data: bytes) -> None:
    digest = await tenant.put(data)
    assert not await store.discard(digest)
    async with await store.open(digest) as content:
        assert Digest.of(await read_all(content)) == digest


async def test_a_file_that_gets_shorter_is_aborted(store: ContainerdStore, tenant: Tenant, data: bytes) -> None:
    async with tenant.writing(data) as writer:
        await writer.write(data[: 3 * MIB])
        async with await store.open(writer.digest, partial=True) as content:
            refs = [ref for ref in tenant.content.glob("ingest/*/ref") if ref.read_text().endswith(writer.digest)]
            os.truncate(refs[0].with_name("data"), MIB)
            with pytest.raises(Aborted):
                await content.readinto(2 * MIB, memoryview(bytearray(10)))
            await assert_aborted(content)
            assert content.available == 3 * MIB
