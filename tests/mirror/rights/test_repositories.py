"""The list of open content is read again after each change, also if the request that reads it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest
from tests.mirror.rights.hosts import add_image
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Digest, Reference
from peili.mirror.rights.coverage import Coverage
from peili.mirror.rights.manifests import ManifestChildren
from peili.mirror.rights.repositories import Repositories
from peili.mirror.support.tasks import Tasks
from peili.mirror.testing import context_for
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


class WaitingStore(MemoryStore):
    """A store that lists its images when it is told to. `asked` counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()
        self.asked = 0

    @override
    async def repositories(self) -> Collection[tuple[str, str, Digest]]:
        self.asked += 1
        await self.may_answer.wait()
        return await super().repositories()


async def test_a_requester_that_leaves_does_not_keep_the_list_of_images_from_being_read() -> None:
    store = WaitingStore()
    layer = store.add(b"layer")
    store.tag(Reference("open.example", "free/app", "v1"), add_image(store, layer, config=b"{}"))
    async with context_for(store) as context, Tasks(context.log) as tasks:
        repositories = Repositories(context, Coverage(["secret.example"]), ManifestChildren(context), 300)
        tasks.start(repositories.run())
        await until(lambda: repositories.arrivals._is_followed)  # pyright: ignore[reportPrivateUsage]
        leaving, staying = (tasks.start(repositories.is_open(layer.digest)) for _ in range(2))
        await until(lambda: store.asked == 1)
        leaving.cancel()
        await until(lambda: store.asked == 2)
        store.may_answer.set()
        assert await staying
        assert await repositories.is_open(layer.digest)
        assert store.asked == 2
