"""Excluded content is neither advertised nor served nor asked for, on either door, by tag or by digest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing, asynccontextmanager

import pytest
from starlette.types import ASGIApp
from tests.mirror.doors.in_memory_host import client_for
from tests.support.neighbours import Neighbour, neighbours
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Descriptor, Digest, Gone, Have, Mirror, NotFound, PushRouter, Reference, Selection, StoreEvent
from peili.mirror.content.selected_store import SelectedStore
from peili.mirror.oci.references import OCI_INDEX, OCI_MANIFEST
from peili.mirror.plugins.content import read_whole
from peili.mirror.resolvers import LocalResolver
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

SECRET = Reference("registry.example", "secret", "v1")
OPEN = Reference("registry.example", "open", "v1")
EXCLUDE = ["^registry[.]example/secret$", "^registry[.]example/secret:"]


def add_image(store: MemoryStore, reference: Reference | None, *layers: Descriptor, config: bytes) -> Descriptor:
    """Add an image of one platform, below an index."""
    manifest = store.add(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": _entry(store.add(config)),
                "layers": [_entry(each) for each in layers],
            }
        ).encode()
    )
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [_entry(manifest)]}
    index = store.add(json.dumps(document).encode())
    if reference is not None:
        store.tag(reference, index)
    return index


def _entry(descriptor: Descriptor) -> dict[str, object]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


class Content:
    """A store with a secret and an open image, which share a layer, and a blob that belongs to no image."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()
        self.secret, self.shared, self.open = (self.store.add(each) for each in (b"secret", b"shared", b"open"))
        self.single = self.store.add(b"of no image")
        self.secret_index = add_image(self.store, SECRET, self.secret, self.shared, config=b"{}")
        self.open_index = add_image(self.store, OPEN, self.shared, self.open, config=b"{ }")
        self.allowed = {self.shared.digest, self.open.digest, self.single.digest, self.open_index.digest}


async def manifest_of(store: MemoryStore, index: Digest) -> Digest:
    async with await store.open(index) as content:
        return Digest(json.loads(await read_whole(content, 10_000))["manifests"][0]["digest"])


def blob(digest: Digest, repository: str = "open") -> str:
    return f"/v2/registry.example/{repository}/blobs/{digest}"


async def statuses(app: ASGIApp, *paths: str) -> list[int]:
    async with client_for(app) as client:
        return [(await client.get(each)).status_code for each in paths]


@pytest.mark.parametrize("door", ["local", "peer"])
async def test_excluded_content_is_not_served_by_tag_or_digest(door: str) -> None:
    content = Content()
    mirror = Mirror(content.store, PushRouter(), LocalResolver(), exclude=EXCLUDE)
    async with mirror:
        app: ASGIApp = getattr(mirror, door)
        for allowed in (content.shared, content.open, content.single):
            assert await statuses(app, blob(allowed.digest)) == [200]
        assert await statuses(app, "/v2/registry.example/open/manifests/v1") == [200]
        secret = [blob(content.secret.digest), blob(content.secret.digest, "secret"), blob(Digest.of(b"{}"))]
        secret += [
            f"/v2/registry.example/{name}/manifests/{content.secret_index.digest}" for name in ("open", "secret")
        ]
        assert await statuses(app, *secret, "/v2/registry.example/secret/manifests/v1") == [404] * 6
        assert await statuses(app, "/v2/registry.example/secret/tags/list") == [404]


async def test_an_index_allows_nothing_that_only_excluded_images_have() -> None:
    """Anybody can write an index that names a manifest of a secret image, for a platform that no host here has."""
    content = Content()
    store = SelectedStore(content.store, Selection(exclude=EXCLUDE))
    manifest = await manifest_of(content.store, content.secret_index.digest)
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{"digest": manifest, "size": 1}]}
    content.store.tag(Reference("evil.example", "x", "v1"), content.store.add(json.dumps(document).encode()))
    for digest in (manifest, content.secret.digest):
        assert await store.is_excluded(digest)
    for digest in (content.shared.digest, await manifest_of(content.store, content.open_index.digest)):
        assert not await store.is_excluded(digest)


async def test_a_peer_is_not_told_that_this_host_has_excluded_content() -> None:
    content, router = Content(), PushRouter()
    mirror = Mirror(content.store, router, exclude=EXCLUDE)
    router.set([])
    async with mirror:
        await mirror.wait_ready(30)
        for key in (content.secret.digest, content.secret_index.digest, SECRET):
            async with client_for(mirror.peer) as client:
                assert (await client.head(f"/_router/keys/{key}")).status_code == 404
                assert (await client.head(f"/_router/keys/{key}", headers={"Peili-In-Flight": "1"})).status_code == 404
        async with client_for(mirror.peer) as client:
            assert (await client.head(f"/_router/keys/{content.shared.digest}")).status_code == 200


async def test_peers_are_not_asked_for_excluded_content() -> None:
    content, router = Content(), PushRouter()
    digest = Digest.of(b"a layer that the runtime has just requested for an excluded image")
    async with neighbours(neighbour := Neighbour("n", digest, content.secret.digest)) as peers:
        router.set(peers)
        async with Mirror(content.store, router, exclude=EXCLUDE) as mirror:
            await mirror.wait_ready(30)
            assert await statuses(mirror.local, blob(content.secret.digest)) == [404]
            assert await statuses(mirror.local, blob(digest, "secret"), blob(digest)) == [404, 404]
            assert neighbour.asked == []


async def test_nothing_is_excluded_by_what_a_peer_requests() -> None:
    content = Content()
    async with Mirror(content.store, PushRouter(), exclude=EXCLUDE) as mirror:
        digest = content.single.digest
        assert await statuses(mirror.peer, blob(digest, "secret"), blob(digest)) == [404, 200]


class Watcher:
    """Collects what a watch yields."""

    def __init__(self) -> None:
        self.have: dict[object, Have] = {}
        self.seen: set[object] = set()

    def note(self, events: Sequence[StoreEvent]) -> None:
        for event in events:
            if isinstance(event, Have):
                self.have[event.key] = event
                self.seen.add(event.key)
            elif isinstance(event, Gone):
                del self.have[event.key]


@asynccontextmanager
async def watching(store: SelectedStore) -> AsyncGenerator[Watcher]:
    watcher = Watcher()

    async def follow() -> None:
        async with aclosing(store.watch()) as batches:
            async for batch in batches:
                watcher.note(batch)

    task = asyncio.create_task(follow())
    try:
        yield watcher
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_excluded_content_is_not_advertised() -> None:
    content = Content()
    async with watching(SelectedStore(content.store, Selection(exclude=EXCLUDE))) as watcher:
        await until(lambda: content.allowed | {OPEN} <= watcher.have.keys())
        assert not watcher.seen & {content.secret.digest, content.secret_index.digest, Digest.of(b"{}"), SECRET}


async def test_what_becomes_part_of_an_image_is_advertised_or_withdrawn() -> None:
    content = Content()
    async with watching(SelectedStore(content.store, Selection(exclude=EXCLUDE))) as watcher:
        await until(lambda: content.single.digest in watcher.have)
        index = add_image(content.store, None, content.single, content.secret, config=b"{  }")
        content.store.tag(Reference("registry.example", "open", "v2"), index)
        await until(lambda: content.secret.digest in watcher.have)
        content.store.tag(Reference("registry.example", "secret", "v2"), index)
        content.store.tag(Reference("registry.example", "open", "v2"), content.open_index)
        await until(lambda: not watcher.have.keys() & {content.secret.digest, content.single.digest})


async def test_content_that_arrives_for_an_excluded_image_is_hidden() -> None:
    """The store lists the image only when all of it is there."""
    content, data = Content(), b"arrives"
    digest = Digest.of(data)
    store = SelectedStore(content.store, Selection(exclude=EXCLUDE))
    async with watching(store) as watcher:
        await until(lambda: content.single.digest in watcher.have)
        store.note_excluded_request(digest)
        ingest = content.store.begin(digest, len(data))
        ingest.write(data[:3])
        with pytest.raises(NotFound):
            await store.open(digest, partial=True)
        ingest.write(data[3:])
        ingest.commit()
        last = content.store.add(b"later")
        await until(lambda: last.digest in watcher.have)
        assert digest not in watcher.seen


async def test_a_request_for_an_excluded_image_counts_for_some_hours_only() -> None:
    """Anybody can write it, for content that is still to come."""
    now = [1000.0]
    store, digest = SelectedStore(MemoryStore(), Selection(exclude=EXCLUDE), clock=lambda: now[0]), Digest.of(b"later")
    store.note_excluded_request(digest)
    now[0] += 6 * 3600 - 1
    assert await store.is_excluded(digest)
    now[0] += 2
    assert not await store.is_excluded(digest)


async def test_an_excluded_image_without_a_tag_is_excluded_without_a_request() -> None:
    class Untagged(MemoryStore):
        @override
        async def repositories(self) -> Collection[tuple[str, str, Digest]]:
            return [*await super().repositories(), ("registry.example", "secret", index.digest)]

    store = Untagged()
    secret = store.add(b"secret")
    index = add_image(store, None, secret, config=b"{}")
    for selection, is_excluded in ((Selection(exclude=EXCLUDE), True), (Selection(exclude=["other"]), False)):
        selected = SelectedStore(store, selection)
        for digest in (index.digest, secret.digest):
            assert await selected.is_excluded(digest) is is_excluded
