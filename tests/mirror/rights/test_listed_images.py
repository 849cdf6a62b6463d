"""Content belongs to the images that refer to it, also if one of them can't be read."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager

import pytest
from tests.mirror.content.test_excluded_images import FaultyStore
from tests.mirror.rights.hosts import add_image
from tests.support.clock import Clock
from tests.support.waiting import WAIT
from typing_extensions import override

from peili.mirror import Descriptor, Digest, Reference, StoreUnavailable
from peili.mirror.oci.references import OCI_INDEX
from peili.mirror.rights.coverage import Coverage
from peili.mirror.rights.manifests import ManifestChildren
from peili.mirror.rights.repositories import Repositories
from peili.mirror.testing import context_for

pytestmark = pytest.mark.anyio

OPEN, COVERED = (Reference("registry.example", name, "v1") for name in ("free/app", "team/app"))


class NamingStore(FaultyStore):
    """A store that also has images without a tag."""

    def __init__(self) -> None:
        super().__init__()
        self.named: list[tuple[str, str, Digest]] = []

    @override
    async def repositories(self) -> Collection[tuple[str, str, Digest]]:
        return [*await super().repositories(), *self.named]


class Host:
    """A store with an open image and a covered one, each with a layer of its own."""

    def __init__(self) -> None:
        self.store = NamingStore()
        self.layer, self.secret, self.other = (self.store.add(each) for each in (b"layer", b"secret", b"other"))
        self.image = add_image(self.store, self.layer, config=b"{}")
        self.covered_manifest = add_image(self.store, self.secret, config=b"{ }")
        self.covered = self.add_index(self.covered_manifest)
        self.store.tag(OPEN, self.image)
        self.store.tag(COVERED, self.covered)

    def add_index(self, *manifests: Descriptor) -> Descriptor:
        entries = [{"mediaType": each.media_type, "digest": each.digest, "size": each.size} for each in manifests]
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        return self.store.add(json.dumps(document).encode())

    @asynccontextmanager
    async def following(self, clock: Callable[[], float] = time.monotonic) -> AsyncGenerator[Repositories]:
        async with context_for(self.store) as context:
            coverage = Coverage(["registry.example/team/*"])
            repositories = Repositories(context, coverage, ManifestChildren(context), ttl=300, clock=clock)
            task = asyncio.create_task(repositories.run())
            try:
                yield repositories
            finally:
                task.cancel()
                await asyncio.wait([task])


async def until_open(repositories: Repositories, digest: Digest) -> None:
    async with asyncio.timeout(WAIT):
        while not await repositories.is_open(digest):  # noqa: ASYNC110 - nothing says when the list is read again
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("error", [StoreUnavailable("input/output error"), KeyError("x")])
async def test_an_image_that_can_not_be_read_closes_no_other_one(error: Exception) -> None:
    host = Host()
    damaged = add_image(host.store, host.other, config=b"{  }")
    host.store.tag(Reference("registry.example", "free/app", "v2"), damaged)
    host.store.damaged[damaged.digest] = error
    async with host.following() as repositories:
        assert await repositories.is_open(host.layer.digest)
        for digest in (host.secret.digest, host.covered.digest, host.other.digest, damaged.digest):
            assert not await repositories.is_open(digest)
        host.store.damaged = {}  # no event says so
        await until_open(repositories, host.other.digest)
        assert not await repositories.is_open(host.secret.digest)


async def test_what_a_covered_image_has_stays_closed_while_it_can_not_be_read() -> None:
    host = Host()
    host.store.damaged[host.covered.digest] = StoreUnavailable("input/output error")
    evil = host.add_index(host.covered_manifest, host.image)
    host.store.tag(Reference("registry.example", "evil/app", "v1"), evil)
    async with host.following() as repositories:
        assert await repositories.is_open(host.layer.digest)
        for digest in (host.secret.digest, host.covered_manifest.digest):
            assert not await repositories.is_open(digest)


async def test_nothing_is_known_while_the_store_is_away() -> None:
    host = Host()
    host.store.damaged[host.covered.digest] = StoreUnavailable("it is away")
    host.store.lists_before_away = 1
    async with host.following() as repositories:
        assert not await repositories.is_open(host.layer.digest)
        host.store.lists_before_away = 1000
        await until_open(repositories, host.layer.digest)


async def test_a_tag_that_moves_closes_the_old_image_and_opens_the_new_one() -> None:
    host = Host()
    async with host.following() as repositories:
        assert await repositories.is_open(host.layer.digest)
        moved = add_image(host.store, host.other, config=b"{}")  # of the same size
        assert moved.size == host.image.size
        await until_open(repositories, host.layer.digest)
        assert not await repositories.is_open(host.other.digest)  # a peer asks before the image is recorded
        host.store.tag(OPEN, moved)
        await until_open(repositories, host.other.digest)
        assert not await repositories.is_open(host.layer.digest)


async def test_the_list_is_read_again_in_time_if_nothing_says_that_an_image_is_new() -> None:
    """As after a pull by digest, for which there is no tag."""
    host = Host()
    named = add_image(host.store, host.other, config=b"{}")
    clock = Clock()
    async with host.following(clock) as repositories:
        clock.now += 2
        assert await repositories.is_open(host.layer.digest)
        assert not await repositories.is_open(host.other.digest)
        host.store.named = [(OPEN.registry, OPEN.repository, named.digest)]
        clock.now += 2
        assert not await repositories.is_open(host.other.digest)
        clock.now += 10
        assert await repositories.is_open(host.other.digest)
