"""Which images are excluded is known also if one of them is odd or damaged, or if they change while they are listed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from tests.mirror.content.test_selected_store import EXCLUDE, OPEN, Content, Watcher, add_image, watching
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Content as StoredContent
from peili.mirror import Descriptor, Digest, Reference, Selection, StoreUnavailable
from peili.mirror.content.selected_store import SelectedStore
from peili.mirror.oci.references import OCI_INDEX
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


class FaultyStore(MemoryStore):
    """A store that can't read some of its manifests, that may go away, and whose list may take long."""

    def __init__(self) -> None:
        super().__init__()
        self.damaged: dict[Digest, Exception] = {}
        self.lists_before_away = 1_000_000
        self.may_list = asyncio.Event()
        self.may_list.set()
        self.is_listing = asyncio.Event()

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> StoredContent:
        if digest in self.damaged:
            raise self.damaged[digest]
        return await super().open(digest, partial=partial)

    @override
    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        if not self.lists_before_away:
            raise StoreUnavailable("it is away")
        self.lists_before_away -= 1
        images = await super().images()
        self.is_listing.set()
        await self.may_list.wait()
        return images


class Faulty(Content):
    """The images of `Content` in such a store."""

    def __init__(self) -> None:
        super().__init__(faulty := FaultyStore())
        self.faulty = faulty


async def check(content: Content, selection: Selection) -> None:
    store = SelectedStore(content.store, selection)
    assert await store.is_excluded(content.secret.digest)
    for digest in content.allowed:
        assert not await store.is_excluded(digest)


@pytest.mark.parametrize(
    "odd", ['{"fsLayers": [{}]}', '{"manifests": [{"digest": {}}]}', '{"config": [], "layers": 1}']
)
async def test_an_odd_image_hides_no_other_one(odd: str) -> None:
    content = Content()
    config = content.store.add(odd.encode())
    entry = {"mediaType": config.media_type, "digest": config.digest, "size": config.size}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    content.store.tag(Reference("evil.example", "x", "v1"), content.store.add(json.dumps(index).encode()))
    await check(content, Selection(exclude=EXCLUDE))
    await check(content, Selection(registries=["registry.example"], exclude=EXCLUDE))


@pytest.mark.parametrize("error", [StoreUnavailable("input/output error"), KeyError("x")])
async def test_a_manifest_that_can_not_be_read_hides_no_other_image(error: Exception) -> None:
    content = Faulty()
    for number in range(3):
        image = add_image(content.store, Reference("registry.example", "open", f"d{number}"), config=b"%d" % number)
        content.faulty.damaged[image.digest] = error
    await check(content, Selection(exclude=EXCLUDE))


async def test_a_store_that_is_away_is_not_taken_for_one_with_damaged_manifests() -> None:
    content = Faulty()
    store = SelectedStore(content.store, Selection(exclude=EXCLUDE))
    content.faulty.damaged[content.secret_index.digest] = StoreUnavailable("it is away")
    content.faulty.lists_before_away = 1
    with pytest.raises(StoreUnavailable):
        await store.is_excluded(content.secret.digest)
    content.faulty.damaged, content.faulty.lists_before_away = {}, 1000
    assert await store.is_excluded(content.secret.digest)


async def test_a_store_that_can_read_nothing_is_not_taken_for_an_empty_one() -> None:
    content = Faulty()
    for number in range(30):
        image = add_image(content.store, Reference("registry.example", "secret", f"d{number}"), config=b"%d" % number)
        content.faulty.damaged[image.digest] = StoreUnavailable("permission denied")
    with pytest.raises(StoreUnavailable, match="can't be read"):
        await SelectedStore(content.store, Selection(exclude=EXCLUDE)).is_excluded(content.secret.digest)


async def ask_until_listing(store: SelectedStore, content: Faulty) -> None:
    """Ask as peers do, until a question reads the list."""
    while not content.faulty.is_listing.is_set():
        await store.is_excluded(content.single.digest)
        await asyncio.sleep(0.01)


async def test_an_image_that_is_new_while_the_list_is_read_is_not_advertised() -> None:
    content = Faulty()
    store = SelectedStore(content.store, Selection(exclude=EXCLUDE))
    async with watching(store) as watcher:
        await until(lambda: content.allowed | {OPEN} <= watcher.have.keys())
        content.faulty.is_listing.clear()
        content.faulty.may_list.clear()
        asking = asyncio.create_task(ask_until_listing(store, content))
        await content.faulty.is_listing.wait()
        content.store.tag(Reference("registry.example", "secret", "v2"), content.single)
        await let_through(content, watcher)
        await asking
        await until(lambda: content.single.digest not in watcher.have)


async def let_through(content: Faulty, watcher: Watcher) -> None:
    """Let the list go on as soon as the watcher of the store has had its turn."""
    assert content.single.digest in watcher.have
    for _ in range(20):
        await asyncio.sleep(0)
    content.faulty.may_list.set()


async def test_the_first_excluded_request_counts_also_while_the_list_is_read() -> None:
    content = Faulty()
    store = SelectedStore(content.store, Selection(registries=["registry.example"]))
    content.faulty.may_list.clear()
    asking = asyncio.create_task(store.is_excluded(content.shared.digest))
    await content.faulty.is_listing.wait()
    store.note_excluded_request(content.shared.digest)
    content.faulty.may_list.set()
    assert not await asking  # it belongs to images, too, which were of no interest before
