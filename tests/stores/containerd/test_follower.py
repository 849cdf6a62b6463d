"""If the follower fails, the store's `run` fails too, so that the mirror's supervisor enters it again."""

from __future__ import annotations

import asyncio

import pytest

from peili.mirror.testing import context_for
from peili.stores.containerd import ContainerdStore
from peili.stores.containerd.follower import ContainerdFollower

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
