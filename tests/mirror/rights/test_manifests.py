"""What manifests refer to is found without asking the store again and again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from typing_extensions import override

from peili.mirror import Content, Digest, Unavailable
from peili.mirror.oci.references import OCI_INDEX, OCI_MANIFEST
from peili.mirror.rights.manifests import ManifestChildren
from peili.mirror.testing import context_for
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

LAYER, OTHER = Digest.of(b"layer"), Digest.of(b"other")


class CountingStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.opened: Counter[Digest] = Counter()
        self.is_up = True

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        self.opened[digest] += 1
        if not self.is_up:
            raise Unavailable("the store is away")
        return await super().open(digest, partial=partial)


def manifest(layer: Digest) -> bytes:
    entry = {"digest": layer, "size": 5}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": entry, "layers": [entry]}).encode()


def index(number: int, *manifests: Digest) -> bytes:
    entries = [{"digest": each, "size": 7} for each in manifests]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, "annotations": {"n": str(number)}}
    return json.dumps(document).encode()


@asynccontextmanager
async def found() -> AsyncGenerator[tuple[CountingStore, ManifestChildren]]:
    store = CountingStore()
    async with context_for(store) as context:
        yield store, ManifestChildren(context)


async def test_a_manifest_that_is_not_here_is_looked_for_once_until_something_arrives() -> None:
    """An index names the manifests of many platforms, of which a host has one."""
    async with found() as (store, children):
        here = manifest(LAYER)
        platforms = [Digest.of(bytes([number])) for number in range(8)]
        root = store.add(index(0, *platforms, Digest.of(here))).digest
        for _ in range(3):
            assert await children.find_parent(LAYER, [root]) is None
        assert set(store.opened.values()) == {1}
        children.note_arrival(store.add(here).digest)
        assert await children.find_parent(LAYER, [root]) == root
        assert store.opened[Digest.of(here)] == 2


async def test_a_manifest_that_was_relayed_is_no_longer_absent() -> None:
    async with found() as (_, children):
        root = Digest.of(manifest(LAYER))
        assert await children.find_parent(LAYER, [root]) is None
        children.note(root, manifest(LAYER))
        assert await children.find_parent(LAYER, [root]) == root


async def test_only_so_many_manifests_are_read_for_one_answer() -> None:
    async with found() as (store, children):
        absent = [Digest.of(number.to_bytes(2)) for number in range(400)]
        roots = [store.add(index(number, *absent[number * 20 : number * 20 + 20])).digest for number in range(20)]
        last = store.add(manifest(LAYER)).digest
        assert await children.find_parent(LAYER, [*roots, last]) is None
        assert store.opened.total() <= 32
        assert await children.find_parent(LAYER, [last, *roots]) == last


async def test_a_store_that_does_not_answer_has_not_said_that_nothing_is_there() -> None:
    async with found() as (store, children):
        root = store.add(manifest(LAYER)).digest
        store.is_up = False
        with pytest.raises(Unavailable):
            await children.find_parent(LAYER, [root])
        store.is_up = True
        assert await children.find_parent(LAYER, [root]) == root
        assert await children.find_parent(OTHER, [root]) is None


@pytest.mark.parametrize(
    "extra", ['"blobs": [%]', '"fsLayers": [{"blobSum": "#"}]', '"manifests": [%]', '"Layers": [%]']
)
async def test_a_manifest_gives_no_right_to_what_its_registry_does_not_look_for(extra: str) -> None:
    """Whoever writes a manifest could otherwise get every layer whose digest he knows."""
    async with found() as (store, children):
        text = extra.replace("%", f'{{"digest": "{OTHER}"}}').replace("#", OTHER)
        root = store.add(manifest(LAYER)[:-1] + f", {text}}}".encode()).digest
        assert await children.find_parent(OTHER, [root]) is None
