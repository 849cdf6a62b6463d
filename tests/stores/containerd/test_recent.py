"""What has just changed is known before the next list of everything. A list that was begun before hides none of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from tests.stores.containerd.helpers import PROMPT, ready
from tests.stores.containerd.namespace import TAG, Namespace
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Digest, Gone, NotFound, Reference, StoreUnavailable
from peili.mirror.testing import watching
from peili.mirror.testing.images import Image
from peili.stores.containerd import ContainerdStore, follower, inotify, recent
from peili.stores.containerd.api import ContainerdApi
from peili.stores.containerd.inotify import ArrivalNotifier
from peili.stores.containerd.listing import BlobCreated, ContainerdEvent, ImageChanged, Listing, NamespaceChanged
from peili.stores.containerd.protos import api_pb2 as pb
from peili.stores.containerd.recent import DELAYS, RecentChanges

pytestmark = pytest.mark.anyio

DEMO = Reference.parse(TAG)


def digests_of(image: Image) -> set[Digest]:
    return {blob.digest for blob in image.blobs}


@pytest.fixture
def no_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store makes one list when it starts, and no other one. So it asks until containerd has recorded a blob.

    On a busy disk, that may be later than the questions usually end.
    """
    monkeypatch.setattr(follower, "MIN_PAUSE", 600.0)
    monkeypatch.setattr(recent, "DELAYS", (*DELAYS, *[0.3] * 200))


@pytest.fixture
async def unlisted(namespace: Namespace, no_lists: None) -> AsyncGenerator[ContainerdStore]:
    store = namespace.store()
    async with ready(store):
        yield store


async def test_a_blob_is_known_without_a_list(unlisted: ContainerdStore, namespace: Namespace) -> None:
    async with watching(unlisted) as seen:
        for size in (10, 100_000):
            digest = await namespace.put(os.urandom(size))
            await seen.until(lambda digest=digest: digest in seen.have, within=PROMPT)  # type: ignore[misc]  # bound early
            assert (seen.have[digest].complete, seen.have[digest].size) == (True, size)


async def test_an_image_is_known_without_a_list(unlisted: ContainerdStore, namespace: Namespace) -> None:
    async with watching(unlisted) as seen:
        for _ in range(2):  # the tag moves
            image = await namespace.load()
            await seen.until(lambda image=image: digests_of(image) <= seen.have.keys(), within=PROMPT)  # type: ignore[misc]  # bound early
            await seen.until(
                lambda image=image: DEMO in seen.have and seen.have[DEMO].target == image.target.digest,  # type: ignore[misc]  # bound early
                within=PROMPT,
            )
        await namespace.ctr("images", "rm", TAG)
        await seen.until(lambda: DEMO not in seen.have, within=PROMPT)


@pytest.mark.usefixtures("no_lists")
@pytest.mark.parametrize("is_configured", [True, False])
async def test_the_first_image_of_a_new_containerd_is_known_without_a_list(
    own_namespace: Namespace, is_configured: bool
) -> None:
    """containerd creates the directory, and the namespace, with the first blob."""
    store = own_namespace.store() if is_configured else ContainerdStore(str(own_namespace.containerd.socket))
    async with ready(store), watching(store) as seen:
        image = await own_namespace.load()
        await seen.until(lambda: {DEMO, *digests_of(image)} <= seen.have.keys(), within=PROMPT)


async def test_many_blobs_at_once_are_listed(
    store: ContainerdStore, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "MAX_RECENT", 1)
    async with watching(store) as seen:
        image = await namespace.load(layers=[10] * 20)
        await seen.until(lambda: {DEMO, *digests_of(image)} <= seen.have.keys(), within=PROMPT)


async def test_what_changes_during_a_list_is_known_at_once_and_stays(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_held, may_end, read = asyncio.Event(), asyncio.Event(), Listing.read

    async def read_slowly(*arguments: Any) -> Listing:
        listing = await read(*arguments)
        if is_held.is_set():
            await may_end.wait()
        return listing

    monkeypatch.setattr(Listing, "read", read_slowly)
    monkeypatch.setattr(recent, "DELAYS", (*DELAYS, *[0.3] * 200))  # no list ends meanwhile
    store = namespace.store()
    async with ready(store), watching(store) as seen:
        is_held.set()
        kept = await namespace.put(os.urandom(50))  # causes a list
        await seen.until(lambda: kept in seen.have, within=PROMPT)
        following = store._connection.follower  # pyright: ignore[reportPrivateUsage]
        await until(lambda: following._during_list is not None)  # pyright: ignore[reportPrivateUsage]
        image = await namespace.load()
        await seen.until(lambda: {DEMO, *digests_of(image)} <= seen.have.keys(), within=PROMPT)
        is_held.clear()
        may_end.set()
        before = following.listing
        await until(lambda: following.listing is not before)
        assert not any(isinstance(event, Gone) for event in seen.events)


class Late(ContainerdApi):
    """A containerd that records what it has only after it was asked `questions` times."""

    def __init__(self, questions: int, error: Exception) -> None:
        super().__init__(Path("/nowhere/containerd.sock"))
        self.questions = questions
        self.error = error
        self.asked = 0

    @override
    async def info(self, namespace: str, digest: str) -> pb.LabelledInfo:
        self.asked += 1
        if self.asked <= self.questions:
            raise self.error
        return pb.LabelledInfo(digest=digest, size=7)


DIGEST = Digest.of(b"some blob")
CREATED = BlobCreated("ours", DIGEST, 7)


@asynccontextmanager
async def asking(
    api: ContainerdApi, root: Path | None = None
) -> AsyncGenerator[tuple[RecentChanges, list[ContainerdEvent]]]:
    """Run `RecentChanges` with the content store at `root`. Yields it, and a list of what it reports."""
    events: list[ContainerdEvent] = []

    async def report(event: ContainerdEvent) -> None:
        events.append(event)

    async def namespaces() -> list[str]:
        return ["ours"]

    async with api:
        changes = RecentChanges(api, report, namespaces, lambda _: False)
        assert not changes.ask(DIGEST), "it does not run yet"
        running = asyncio.create_task(changes.run(root))
        await asyncio.sleep(0)
        try:
            yield changes, events
        finally:
            running.cancel()
            await asyncio.wait([running])


async def test_a_blob_that_containerd_has_not_recorded_yet_is_asked_about_again() -> None:
    async with asking(api := Late(3, NotFound("not yet"))) as (changes, events):
        assert changes.ask(DIGEST)
        await until(lambda: events)
        assert (events, api.asked) == ([CREATED], 4)


@pytest.mark.parametrize(("error", "most"), [(NotFound("no"), len(DELAYS)), (StoreUnavailable("away"), 1)])
async def test_the_questions_about_a_blob_end(error: Exception, most: int) -> None:
    async with asking(api := Late(1000, error)) as (changes, events):
        assert changes.ask(DIGEST)
        await until(lambda: not changes._questions)  # pyright: ignore[reportPrivateUsage]
        assert (events, api.asked) == ([], most)


async def test_what_is_asked_at_the_same_time_is_limited_and_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MAX_RECENT", 1)
    async with asking(api := Late(0, NotFound("no"))) as (changes, events):
        assert changes.ask(DIGEST)
        assert changes.ask(DIGEST), "it takes the place of the first question"
        assert not changes.ask(ImageChanged("ours", DEMO))
        changes.cancel(DIGEST)
        changes.cancel(DIGEST)
        assert changes.ask(ImageChanged("ours", DEMO))
        changes.cancel(ImageChanged("ours", DEMO))
        assert not changes._questions  # pyright: ignore[reportPrivateUsage]
        await asyncio.sleep(0.1)
        assert (events, api.asked) == ([], 0)


@pytest.fixture
async def content(tmp_path: Path) -> Path:
    """The directory of a content store, without blobs."""
    with closing(ArrivalNotifier()) as notifier:
        if not notifier.is_active:
            pytest.skip("this user has no inotify instance left")
    root = tmp_path / "content"
    (root / "blobs" / "sha256").mkdir(parents=True)
    return root


async def test_without_inotify_what_events_name_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inotify, "_LIBC", object())
    async with asking(Late(0, NotFound("no")), tmp_path) as (changes, events):
        assert changes.ask(DIGEST)
        await until(lambda: events)
        assert events == [CREATED]


async def test_more_blobs_than_are_asked_about_cause_a_list(content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MAX_RECENT", 1)
    async with asking(Late(1000, NotFound("not yet")), content) as (_, events):
        for data in (b"one", b"two"):
            (content / "blobs" / "sha256" / Digest.of(data).encoded).touch()
        await until(lambda: NamespaceChanged("") in events)


async def test_blobs_in_a_directory_that_takes_the_place_of_another_one_are_noticed(content: Path) -> None:
    """Such as a file system that is mounted later."""
    new = content.with_name("new")
    (new / "sha256").mkdir(parents=True)
    (new / "sha256" / DIGEST.encoded).touch()
    async with asking(Late(0, NotFound("no")), content) as (_, events):
        (content / "blobs").rename(content.with_name("old"))
        new.rename(content / "blobs")
        await until(lambda: events)
        assert events == [CREATED]


async def test_a_notifier_follows_paths_and_not_directories_that_were_moved_away(content: Path) -> None:
    path, old, older = content / "path", content / "old", content / "older"
    with closing(ArrivalNotifier()) as notifier:
        for moved in (older, old):
            path.mkdir()
            assert notifier.watch_new(path)
            assert not notifier.watch_new(path)
            path.rename(moved)
        assert not notifier.watch_new(path)
        assert notifier.watch(old)
        path.mkdir()
        assert notifier.watch_new(path)
        for directory in (older, old, path):
            (directory / "file").touch()
        arrived: list[Path] = []
        async with asyncio.timeout(PROMPT):
            while path / "file" not in arrived:
                await notifier.wait(PROMPT)
                arrived += notifier.take()
        assert arrived == [old / "file", path / "file"]
