"""What the store reports about ingests: blobs that a real containerd is still writing."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
from tests.lab.containerd import Containerd
from tests.lab.network import LoopbackNetwork
from tests.lab.releases import each_release, release
from tests.stores.containerd.helpers import PROMPT, eventually, ready
from tests.stores.containerd.namespace import Namespace, new_namespace
from tests.support.directories import short_directory

from peili.mirror import Aborted, Digest, Gone, Have, NotFound
from peili.mirror.testing import Watched, watching
from peili.stores.containerd import ContainerdStore
from peili.stores.containerd import ingests as ingests_module
from peili.stores.containerd import inotify as inotify_module
from peili.stores.containerd.inotify import DirectoryNotifier
from peili.stores.containerd.inotify_limits import InotifyLimit

pytestmark = pytest.mark.anyio

MIB = 1 << 20
SIZE = 5 * MIB + 12_345


@pytest.fixture
async def watched(store: ContainerdStore) -> AsyncGenerator[Watched]:
    async with watching(store) as watched:
        await watched.until(lambda: watched.synced, within=PROMPT)
        yield watched


@pytest.fixture
def data() -> bytes:
    return os.urandom(SIZE)


def is_partial(watched: Watched, digest: Digest, available: int) -> Callable[[], bool]:
    """Return a condition: `digest` was reported as unfinished, with its size and so many bytes."""
    return lambda: watched.have.get(digest) == Have(digest, SIZE, complete=False, available=available)


def write_ingest(directory: Path, ref: str, data: bytes) -> None:
    """Write the files of an ingest of which all bytes have arrived."""
    (directory / "ref").write_text(ref)
    (directory / "total").write_text(str(len(data)))
    (directory / "data").write_bytes(data)


async def test_an_ingest_is_reported_until_it_is_complete(watched: Watched, namespace: Namespace, data: bytes) -> None:
    async with namespace.writing(data) as writer:
        await watched.until(is_partial(watched, writer.digest, 0), within=PROMPT)
        await writer.write(data[: 3 * MIB])
        await watched.until(is_partial(watched, writer.digest, 3 * MIB), within=PROMPT)
        await writer.write(data[3 * MIB :])
        await writer.commit()
    await watched.until(lambda: watched.have.get(writer.digest) == Have(writer.digest, SIZE), within=PROMPT)
    events = [event for event in watched.events if isinstance(event, Have | Gone) and event.key == writer.digest]
    assert not any(isinstance(event, Gone) for event in events)
    assert [event.complete for event in events if isinstance(event, Have)] == [False] * (len(events) - 1) + [True]


async def test_a_new_ingest_is_noticed_by_itself(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at all directories from time to time would be too late."""
    monkeypatch.setattr(ingests_module, "SAFETY_INTERVAL", 600.0)
    store = namespace.store()
    async with ready(store), watching(store) as watched:
        for _ in range(10):
            async with namespace.writing(os.urandom(SIZE)) as writer:
                await watched.until(is_partial(watched, writer.digest, 0), within=PROMPT)


async def test_an_ingest_that_was_there_before_is_reported(namespace: Namespace, data: bytes) -> None:
    async with namespace.writing(data) as writer:
        await writer.write(data[:MIB])
    store = namespace.store()
    for _ in range(2):
        async with ready(store), watching(store) as watched:
            await watched.until(is_partial(watched, writer.digest, MIB), within=PROMPT)


async def test_an_aborted_ingest_is_gone(
    store: ContainerdStore, watched: Watched, namespace: Namespace, data: bytes
) -> None:
    async with namespace.writing(data) as writer:
        await writer.write(data[:MIB])
        await watched.until(is_partial(watched, writer.digest, MIB), within=PROMPT)
        assert await store.discard(writer.digest)
        await watched.until(lambda: writer.digest not in watched.have, within=PROMPT)
    async with namespace.writing(data) as writer:  # the next pull
        await watched.until(is_partial(watched, writer.digest, 0), within=PROMPT)
        await writer.write(data[: 2 * MIB])
        await watched.until(is_partial(watched, writer.digest, 2 * MIB), within=PROMPT)


async def test_an_ingest_without_a_writer_is_gone_until_it_is_continued(
    store: ContainerdStore, watched: Watched, namespace: Namespace, data: bytes
) -> None:
    async with namespace.writing(data) as writer:
        await writer.write(data[:MIB])
        await watched.until(is_partial(watched, writer.digest, MIB), within=PROMPT)
        content = await store.open(writer.digest, partial=True)
    async with content:
        with pytest.raises(Aborted, match="given up"):
            async with asyncio.timeout(PROMPT):
                await content.wait(MIB)
        assert await content.readinto(0, memoryview(bytearray(10))) == 10
    await watched.until(lambda: writer.digest not in watched.have, within=PROMPT)
    with pytest.raises(NotFound):
        await store.open(writer.digest, partial=True)
    async with namespace.writing(data) as writer:  # the next pull
        async with await store.open(writer.digest, partial=True) as content:
            assert content.available == MIB
        writer.continue_at(MIB)
        await writer.write(data[MIB : 2 * MIB])
        await watched.until(is_partial(watched, writer.digest, 2 * MIB), within=PROMPT)
        await writer.write(data[2 * MIB :])
        await writer.commit()
    await watched.until(lambda: watched.have.get(writer.digest) == Have(writer.digest, SIZE), within=PROMPT)


async def test_a_whole_ingest_that_is_not_committed_can_be_read_for_longer_than_one_without_a_writer(
    store: ContainerdStore,
    watched: Watched,
    namespace: Namespace,
    data: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its bytes may be wrong. Hosts that read it should find that out, and not fetch the rest from upstream."""
    monkeypatch.setattr(ingests_module, "WHOLE_TIMEOUT", 600.0)
    async with namespace.writing(data) as whole:
        await whole.write(data)
        await watched.until(is_partial(watched, whole.digest, SIZE), within=PROMPT)
    async with namespace.writing(data[::-1]) as unfinished:
        await unfinished.write(data[:MIB])
        await watched.until(is_partial(watched, unfinished.digest, MIB), within=PROMPT)
    await watched.until(lambda: unfinished.digest not in watched.have, within=PROMPT)
    async with await store.open(whole.digest, partial=True) as content:
        assert content.available == SIZE
    assert whole.digest in watched.have
    monkeypatch.setattr(ingests_module, "WHOLE_TIMEOUT", ingests_module.CLOSE_TIMEOUT)
    await watched.until(lambda: whole.digest not in watched.have, within=PROMPT)


async def test_readers_do_not_keep_an_ingest_without_a_writer(
    store: ContainerdStore, watched: Watched, namespace: Namespace, data: bytes
) -> None:
    async with namespace.writing(data) as writer:
        await writer.write(data[:MIB])
        await watched.until(is_partial(watched, writer.digest, MIB), within=PROMPT)

    async def ask_how_far_it_is() -> None:
        while True:
            async with await store.open(writer.digest, partial=True) as content:
                assert content.available == MIB
            await asyncio.sleep(ingests_module.CLOSE_TIMEOUT / 10)

    with pytest.raises(NotFound):
        async with asyncio.timeout(PROMPT):
            await ask_how_far_it_is()
    await watched.until(lambda: writer.digest not in watched.have, within=PROMPT)


async def test_an_old_ingest_is_not_reported_until_it_grows(namespace: Namespace, data: bytes) -> None:
    async with namespace.writing(data) as writer:
        await writer.write(data[:MIB])
        for path in (namespace.content / "ingest").glob("*/data"):
            if (path.with_name("ref")).read_text().endswith(writer.digest):
                os.utime(path, (1, 1))
        store = namespace.store()
        async with ready(store), watching(store) as watched:
            async with namespace.writing(os.urandom(SIZE)) as later:
                await watched.until(is_partial(watched, later.digest, 0), within=PROMPT)
            assert writer.digest not in watched.have
            with pytest.raises(NotFound):
                await store.open(writer.digest, partial=True)
            await writer.write(data[MIB : 2 * MIB])
            await watched.until(is_partial(watched, writer.digest, 2 * MIB), within=PROMPT)


@pytest.mark.parametrize("name", each_release("trixie", "forky"))
async def test_the_first_ingest_of_a_new_containerd_is_found(name: str, tmp_path: Path, data: bytes) -> None:
    with short_directory() as directory:
        containerd = Containerd(LoopbackNetwork().add_node("new"), directory / "c", unpack=False, release=release(name))
        try:
            containerd.start()
            namespace = new_namespace(containerd, tmp_path)
            store = namespace.store()
            async with ready(store), watching(store) as watched:
                assert not namespace.content.exists()
                assert store.shows_in_flight()
                async with namespace.writing(data) as writer:
                    async with await store.open(writer.digest, partial=True) as content:
                        assert content.available == 0
                    await watched.until(is_partial(watched, writer.digest, 0), within=PROMPT)
                    await writer.write(data[:MIB])
                    await watched.until(is_partial(watched, writer.digest, MIB), within=PROMPT)
        finally:
            containerd.stop()


async def test_without_the_directory_nothing_in_flight_is_shown(namespace: Namespace, data: bytes) -> None:
    await namespace.put(data)
    for path in (namespace.directory / "nowhere" / "content", namespace.directory / "content"):
        store = namespace.store(content_path=path)
        assert not store.shows_in_flight()
        async with ready(store):
            assert not store.shows_in_flight()


async def test_a_list_does_not_remove_an_ingest(watched: Watched, namespace: Namespace, data: bytes) -> None:
    async with namespace.writing(data) as writer:
        await writer.write(data[:MIB])
        await watched.until(is_partial(watched, writer.digest, MIB), within=PROMPT)
        other = await namespace.put(os.urandom(100))
        await watched.until(lambda: other in watched.have and watched.have[other].complete, within=PROMPT)
        assert is_partial(watched, writer.digest, MIB)()


async def test_a_shorter_file_is_reported(watched: Watched, namespace: Namespace, data: bytes) -> None:
    async with namespace.writing(data) as writer:
        await writer.write(data[: 3 * MIB])
        await watched.until(is_partial(watched, writer.digest, 3 * MIB), within=PROMPT)
        refs = [ref for ref in namespace.content.glob("ingest/*/ref") if ref.read_text().endswith(writer.digest)]
        os.truncate(refs[0].with_name("data"), MIB)
        await watched.until(is_partial(watched, writer.digest, MIB), within=PROMPT)


async def test_ingests_of_other_namespaces_and_of_complete_blobs_are_not_reported(
    watched: Watched, namespace: Namespace, data: bytes
) -> None:
    other = new_namespace(namespace.containerd, namespace.directory)
    whole = await namespace.put(data)
    await watched.until(lambda: watched.have.get(whole) == Have(whole, SIZE), within=PROMPT)
    before = len(watched.events)
    async with other.writing(os.urandom(SIZE)) as foreign, other.writing(data):
        async with namespace.writing(os.urandom(SIZE)) as later:
            await watched.until(is_partial(watched, later.digest, 0), within=PROMPT)
        assert foreign.digest not in watched.have
    assert whole not in {event.key for event in watched.events[before:] if isinstance(event, Have | Gone)}


async def test_growth_is_reported_at_a_bounded_rate(watched: Watched, namespace: Namespace) -> None:
    data = os.urandom(30 * MIB)
    started = time.monotonic()
    async with namespace.writing(data) as writer:
        for start in range(0, len(data), MIB):
            await writer.write(data[start : start + MIB])
            await asyncio.sleep(0.03)
        partial = Have(writer.digest, len(data), complete=False, available=len(data))
        await watched.until(lambda: watched.have.get(writer.digest) == partial, within=PROMPT)
        await writer.commit()
    await watched.until(lambda: watched.have.get(writer.digest) == Have(writer.digest, len(data)), within=PROMPT)
    reports = [event for event in watched.events if isinstance(event, Have) and event.key == writer.digest]
    assert len(reports) <= (time.monotonic() - started) / ingests_module.REPORT_INTERVAL + 4


@pytest.mark.parametrize("ref", [b"", b"no ref", b"\xff/1/layer-sha256:1", b"default/1/layer-sha256:12", b"a/b/c/d"])
async def test_odd_directories_are_ignored(watched: Watched, namespace: Namespace, data: bytes, ref: bytes) -> None:
    odd = namespace.content / "ingest" / "odd"
    (odd / "total").mkdir(parents=True)
    (odd / "ref").write_bytes(ref)
    (odd / "data").touch()
    try:
        async with namespace.writing(data) as writer:
            await watched.until(is_partial(watched, writer.digest, 0), within=PROMPT)
    finally:
        shutil.rmtree(odd)


@pytest.mark.parametrize("link", ["", "ref", "total", "data"], ids=["directory", "ref", "total", "data"])
async def test_nothing_is_read_through_a_symbolic_link(
    store: ContainerdStore, watched: Watched, namespace: Namespace, data: bytes, link: str
) -> None:
    digest = Digest.of(data)
    odd, outside = namespace.content / "ingest" / "odd", namespace.directory / "outside"
    outside.mkdir()
    write_ingest(outside, f"{namespace.name}/1/layer-{digest}", data)
    if link:
        odd.mkdir(parents=True)
        write_ingest(odd, f"{namespace.name}/1/layer-{digest}", data)
        (odd / link).unlink()
    (odd / link if link else odd).symlink_to(outside / link)
    try:
        async with namespace.writing(os.urandom(SIZE)) as writer:
            await watched.until(is_partial(watched, writer.digest, 0), within=PROMPT)
        assert digest not in watched.have
        if link != "total":  # without it, the size is unknown
            with pytest.raises(NotFound):
                await store.open(digest, partial=True)
        else:
            async with await store.open(digest, partial=True) as content:
                assert content.size is None
    finally:
        if link:
            shutil.rmtree(odd)
        else:
            odd.unlink()


async def test_a_pipe_in_place_of_a_file_stops_nothing(watched: Watched, namespace: Namespace, data: bytes) -> None:
    odd = namespace.content / "ingest" / "odd"
    odd.mkdir(parents=True)
    write_ingest(odd, "", data)
    (odd / "ref").unlink()
    os.mkfifo(odd / "ref")
    try:
        async with namespace.writing(data) as writer:
            await watched.until(is_partial(watched, writer.digest, 0), within=PROMPT)
    finally:
        shutil.rmtree(odd)


async def test_ended_ingests_leave_no_watch_behind(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    notifiers: list[DirectoryNotifier] = []

    class RecordingNotifier(DirectoryNotifier):
        def __init__(self, reached: Callable[[InotifyLimit], None]) -> None:
            super().__init__(reached)
            notifiers.append(self)

    monkeypatch.setattr(ingests_module, "DirectoryNotifier", RecordingNotifier)
    store = namespace.store()
    async with ready(store), watching(store) as watched:
        last = [await namespace.put(os.urandom(size)) for size in (10, 1000, 100_000) * 10][-1]
        await watched.until(lambda: last in watched.have and watched.have[last].complete, within=PROMPT)
        [notifier] = notifiers
        watches = notifier._watches  # pyright: ignore[reportPrivateUsage] - nothing public shows a leak
        # Those of the content store itself, and those of other tests' ingests.
        await eventually(lambda: all(path.exists() for path in watches), "the watches of ended ingests are removed")


async def test_ingests_are_found_without_inotify(
    namespace: Namespace, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inotify_module, "_LIBC", object())
    store = namespace.store()
    async with ready(store), watching(store) as watched, namespace.writing(data) as writer:
        assert not DirectoryNotifier().is_active
        await watched.until(is_partial(watched, writer.digest, 0), within=PROMPT)
        await writer.write(data)
        await watched.until(is_partial(watched, writer.digest, SIZE), within=PROMPT)


async def test_a_notifier_reports_what_happens_in_its_directories(tmp_path: Path) -> None:
    notifier = DirectoryNotifier()
    if not notifier.is_active:
        pytest.skip("this user has no inotify instance left")
    assert not notifier.watch(tmp_path / "nowhere")
    assert notifier.watch(tmp_path)
    inner = tmp_path / "inner"

    async def is_notified(change: Callable[[], object]) -> bool:
        started = time.monotonic()
        change()
        await notifier.wait(30)
        return time.monotonic() - started < 30

    assert await is_notified(inner.mkdir)
    assert notifier.watch(inner)
    assert await is_notified(lambda: (inner / "file").write_bytes(b"1"))
    assert await is_notified(lambda: (inner / "file").write_bytes(b"22"))
    assert await is_notified(lambda: (inner / "file").rename(tmp_path / "file"))
    notifier.unwatch(inner)
    (inner / "file").touch()
    await notifier.wait(0.05)
    assert await is_notified((tmp_path / "file").unlink)
    notifier.close()
    notifier.close()
    await eventually(lambda: not notifier.is_active, "it is closed")
