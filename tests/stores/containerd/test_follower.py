"""If the follower fails, the store's `run` fails too, and the mirror enters it again. A cancellation is not lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Inventory, StoreUnavailable
from peili.mirror.testing import context_for
from peili.stores.containerd import ContainerdStore
from peili.stores.containerd.api import ContainerdApi
from peili.stores.containerd.follower import ContainerdFollower
from peili.stores.containerd.options import ContainerdOptions
from peili.stores.containerd.protos import api_pb2 as pb

pytestmark = pytest.mark.anyio


async def test_run_fails_if_the_follower_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: ContainerdFollower) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ContainerdFollower, "run", fail)
    store = ContainerdStore("/nowhere/containerd.sock")
    with pytest.raises(ExceptionGroup) as failed:
        async with context_for(store) as context, store.run(context), asyncio.timeout(60):
            await asyncio.Event().wait()
    assert failed.group_contains(RuntimeError, match="a bug")
    assert not store.ready()


class Leaving(ContainerdApi):
    """A containerd that ends its stream of events when `has_left` is set, while it answers nothing else."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere/containerd.sock"))
        self.asked = 0
        self.has_left = asyncio.Event()

    @override
    async def events(self, *filters: str) -> AsyncGenerator[pb.Envelope, None]:
        self.asked += 1
        await self.has_left.wait()
        raise StoreUnavailable("containerd has left")
        yield  # an async generator

    @override
    async def content_root(self) -> Path | None:
        self.asked += 1
        await asyncio.Event().wait()
        return None


@pytest.mark.parametrize("turns", range(8))
async def test_a_cancellation_as_containerd_leaves_is_not_lost(turns: int) -> None:
    options = ContainerdOptions(Path("/nowhere/containerd.sock"), (), None)
    async with Leaving() as api:
        follower = ContainerdFollower(api, options, Inventory(), logging.getLogger("peili.test"))
        following = asyncio.create_task(follower.run())
        await until(lambda: api.asked == 2)
        api.has_left.set()
        for _ in range(turns):  # of the event loop; what happens in which one is up to asyncio
            await asyncio.sleep(0)
        following.cancel()
        await asyncio.wait({following}, timeout=20)
        is_cancelled = following.cancelled()
        following.cancel()
        assert is_cancelled
