"""The events of `watch`. Peers must see a change within two seconds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from tests.stores.containerd.helpers import PROMPT, ready
from tests.stores.containerd.namespace import TAG, Namespace, new_namespace

from peili.mirror import Gone, Have, Key, Reference, Synced
from peili.mirror.testing import entered, watching
from peili.mirror.testing.images import Image
from peili.stores.containerd import ContainerdStore

pytestmark = pytest.mark.anyio

DEMO = Reference.parse(TAG)


def keys_of(image: Image, *tags: str) -> set[Key]:
    return {*(blob.digest for blob in image.blobs), *(Reference.parse(tag) for tag in tags or [TAG])}


@pytest.fixture(params=["from its directory", "through the API"])
async def store(request: pytest.FixtureRequest, namespace: Namespace) -> AsyncGenerator[ContainerdStore]:
    nowhere = namespace.directory / "not-mounted-here"
    store = namespace.store(content_path=nowhere if "API" in request.param else None)
    async with ready(store):
        yield store


async def test_a_watch_starts_with_everything_and_then_synced(namespace: Namespace) -> None:
    image = await namespace.load(TAG, "docker.io/library/demo:v2")
    store = namespace.store()
    async with entered(store), aclosing(store.watch()) as batches:
        have = [event for event in await anext(batches) if isinstance(event, Have)]
        assert {event.key for event in have} >= keys_of(image, TAG, "docker.io/library/demo:v2")
        assert all(event.complete for event in have)
        sizes = {event.key: event.size for event in have}
        assert [sizes[blob.digest] for blob in image.blobs] == [blob.size for blob in image.blobs]
        assert sizes[DEMO] == image.target.size


async def test_an_empty_store_is_synced_too(namespace: Namespace) -> None:
    store = namespace.store()
    async with entered(store), aclosing(store.watch()) as batches:
        assert list(await anext(batches)) == [Synced()]


async def test_watchers_see_an_imported_image(store: ContainerdStore, namespace: Namespace) -> None:
    async with watching(store) as seen:
        await seen.until(lambda: seen.synced, within=PROMPT)
        image = await namespace.load()
        await seen.until(lambda: seen.have.keys() == keys_of(image), within=PROMPT)


async def test_watchers_see_that_a_tag_moves_to_an_image_of_the_same_size(
    store: ContainerdStore, namespace: Namespace
) -> None:
    before = (await namespace.load()).target
    async with watching(store) as seen:
        await seen.until(lambda: seen.synced and DEMO in seen.have, within=PROMPT)
        assert seen.have[DEMO].target == before.digest
        now = (await namespace.load()).target  # containerd updates its record, as after a pull
        assert before.digest != now.digest
        assert before.size == now.size
        await seen.until(lambda: seen.have[DEMO].target == now.digest, within=PROMPT)
        assert Gone(DEMO) not in seen.events


async def test_watchers_see_a_blob_without_an_image(store: ContainerdStore, namespace: Namespace) -> None:
    async with watching(store) as seen:
        await seen.until(lambda: seen.synced, within=PROMPT)
        digest = await namespace.put(os.urandom(100))
        await seen.until(lambda: digest in seen.have, within=PROMPT)


async def test_watchers_see_content_that_another_namespace_had_before(
    namespace: Namespace, store: ContainerdStore
) -> None:
    image = await new_namespace(namespace.containerd, namespace.directory).load()
    async with watching(store) as seen:
        await seen.until(lambda: seen.synced, within=PROMPT)
        assert not seen.have
        await namespace.load_again(image)  # no file changes
        await seen.until(lambda: seen.have.keys() == keys_of(image), within=PROMPT)


async def test_a_removed_image_and_its_garbage_collected_content_are_gone(
    store: ContainerdStore, namespace: Namespace
) -> None:
    await namespace.load()
    kept = await namespace.load("docker.io/library/kept:v1")
    async with watching(store) as seen:
        await seen.until(lambda: seen.have.keys() > keys_of(kept, "docker.io/library/kept:v1"), within=PROMPT)
        # --sync: if a collection took long, as on a busy disk, containerd begins no other one for a minute or more.
        await namespace.ctr("images", "rm", "--sync", TAG)
        await seen.until(lambda: DEMO not in seen.have, within=PROMPT)
        gone = {"docker.io/library/kept:v1"}
        await seen.until(lambda: seen.have.keys() == keys_of(kept, *gone), within=PROMPT)


async def test_content_that_another_tag_needs_stays(store: ContainerdStore, namespace: Namespace) -> None:
    image = await namespace.load(TAG, "docker.io/library/demo:v2")
    async with watching(store) as seen:
        await seen.until(lambda: DEMO in seen.have, within=PROMPT)
        await namespace.ctr("images", "rm", "--sync", TAG)
        await seen.until(lambda: DEMO not in seen.have, within=PROMPT)
        await asyncio.sleep(1.5)  # more than one list
        gone = {event.key for event in seen.events if isinstance(event, Gone)}
        assert gone & keys_of(image, TAG, "docker.io/library/demo:v2") == {DEMO}  # and the archive's index
        assert seen.have.keys() == keys_of(image, "docker.io/library/demo:v2")


async def test_content_that_only_another_namespace_keeps_is_gone(store: ContainerdStore, namespace: Namespace) -> None:
    image = await namespace.load()
    await new_namespace(namespace.containerd, namespace.directory).load_again(image)
    async with watching(store) as seen:
        await seen.until(lambda: seen.have.keys() == keys_of(image), within=PROMPT)
        await namespace.ctr("images", "rm", "--sync", TAG)
        await seen.until(lambda: not seen.have, within=PROMPT)


async def test_a_tag_without_its_content_is_gone(store: ContainerdStore, namespace: Namespace) -> None:
    image = await namespace.load()
    async with watching(store) as seen:
        await seen.until(lambda: DEMO in seen.have, within=PROMPT)
        await namespace.ctr("content", "rm", image.target.digest)
        await seen.until(lambda: not {DEMO, image.target.digest} & seen.have.keys(), within=PROMPT)


async def test_each_watcher_receives_everything(store: ContainerdStore, namespace: Namespace) -> None:
    async with watching(store) as early:
        image = await namespace.load()
        await early.until(lambda: early.have.keys() == keys_of(image), within=PROMPT)
        async with watching(store) as late:
            await late.until(lambda: late.synced, within=PROMPT)
            assert late.have == early.have
            await namespace.ctr("images", "rm", "--sync", TAG)
            await early.until(lambda: not early.have, within=PROMPT)
            await late.until(lambda: not late.have, within=PROMPT)


async def test_no_event_is_repeated_while_nothing_changes(store: ContainerdStore, namespace: Namespace) -> None:
    async with watching(store) as seen:
        image = await namespace.load()
        await seen.until(lambda: seen.have.keys() == keys_of(image), within=PROMPT)
        before = list(seen.events)
        await new_namespace(namespace.containerd, namespace.directory).put(os.urandom(100))
        await asyncio.sleep(2)
        assert seen.events == before


async def test_watchers_see_a_new_namespace_by_default(own_namespace: Namespace) -> None:
    store = ContainerdStore(str(own_namespace.containerd.socket))
    async with ready(store), watching(store) as seen:
        await seen.until(lambda: seen.synced, within=PROMPT)
        image = await own_namespace.load()
        await seen.until(lambda: seen.have.keys() == keys_of(image), within=PROMPT)


async def test_a_list_of_many_messages_is_complete(own_namespace: Namespace) -> None:
    image = await own_namespace.load(layers=[10] * 250)  # containerd puts 100 into a message
    store = own_namespace.store()
    async with entered(store), watching(store) as seen:
        await seen.until(lambda: seen.synced, within=PROMPT)
        assert seen.have.keys() >= keys_of(image)
