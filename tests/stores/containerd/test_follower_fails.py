"""A bug in following containerd ends the store's stay in the mirror, whose supervisor begins another."""

from __future__ import annotations

import asyncio

import pytest

from peili.mirror.testing import context_for
from peili.stores.containerd import ContainerdStore
from peili.stores.containerd.follower import Follower

pytestmark = pytest.mark.anyio


async def test_a_follower_that_fails_takes_the_store_s_run_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: Follower) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Follower, "run", fail)
    store = ContainerdStore("/nowhere/containerd.sock")
    with pytest.raises(ExceptionGroup) as failed:
        async with context_for(store) as context, store.run(context), asyncio.timeout(60):
            await asyncio.Event().wait()
    assert failed.group_contains(RuntimeError, match="a bug")
    assert not store.ready()
