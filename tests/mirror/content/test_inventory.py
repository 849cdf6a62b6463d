"""`Inventory`, the implementation of `Store.watch`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peili.mirror import Digest, Gone, Have, Key, StoreEvent, Synced
from peili.mirror.content.inventory import BATCH, Inventory

pytestmark = pytest.mark.anyio
A, B, C = (Digest.of(each) for each in (b"a", b"b", b"c"))


async def first_events(inventory: Inventory, *, batches: int) -> list[StoreEvent]:
    """Return what a new watcher gets in so many batches."""
    events: list[StoreEvent] = []
    async with aclosing(inventory.watch()) as stream:
        for _ in range(batches):
            events += await anext(stream)
    return events


async def test_a_new_watcher_gets_everything_then_synced() -> None:
    inventory = Inventory()
    inventory.replace([Have(A, 1), Have(B, 2)])
    assert await first_events(inventory, batches=1) == [Have(A, 1), Have(B, 2), Synced()]


async def test_an_empty_inventory_is_synced_too() -> None:
    inventory = Inventory()
    inventory.replace([])
    assert await first_events(inventory, batches=1) == [Synced()]


async def test_synced_comes_only_after_the_backend_was_read() -> None:
    inventory = Inventory()
    inventory.update([Have(A)])
    async with aclosing(inventory.watch()) as stream:
        assert await anext(stream) == (Have(A),)
        following = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        assert not following.done()
        inventory.update([Synced()])
        assert await following == (Synced(),)


async def test_changes_follow_and_repeats_are_dropped() -> None:
    inventory = Inventory()
    inventory.replace([Have(A, 1), Have(B, 2)])
    async with aclosing(inventory.watch()) as stream:
        await anext(stream)
        inventory.replace([Have(A, 1), Have(C, 3)])
        assert await anext(stream) == (Gone(B), Have(C, 3))
        inventory.update([Have(A, 1), Gone(B)])
        inventory.update([Have(A, 5, complete=False, available=3)])
        assert await anext(stream) == (Have(A, 5, complete=False, available=3),)


async def test_a_slow_watcher_gets_the_last_state_only() -> None:
    inventory = Inventory()
    inventory.replace([Have(B)])
    async with aclosing(inventory.watch()) as stream:
        await anext(stream)
        for available in range(1000):
            inventory.update([Have(A, 1000, complete=False, available=available)])
        for n in range(1000):
            inventory.update([Have(Digest.of(str(n).encode()))])
            inventory.update([Gone(Digest.of(str(n).encode()))])
        inventory.update([Gone(B)])
        assert await anext(stream) == (Have(A, 1000, complete=False, available=999), Gone(B))


async def test_a_key_that_came_back_has_its_new_state() -> None:
    inventory = Inventory()
    inventory.replace([Have(A, 1)])
    async with aclosing(inventory.watch()) as stream:
        await anext(stream)
        inventory.update([Gone(A)])
        inventory.update([Have(A, 2)])
        assert await anext(stream) == (Have(A, 2),)


async def test_large_inventories_come_in_batches() -> None:
    inventory = Inventory()
    inventory.replace(Have(Digest.of(str(n).encode())) for n in range(BATCH + 1))
    async with aclosing(inventory.watch()) as stream:
        assert len(await anext(stream)) == BATCH
        assert len(await anext(stream)) == 2


async def test_a_closed_watcher_leaves_nothing_behind() -> None:
    inventory = Inventory()
    inventory.replace([])
    await first_events(inventory, batches=1)
    assert not inventory._watchers  # pyright: ignore[reportPrivateUsage] - nothing public tells of a leak


async def test_each_watcher_has_its_own_sequence() -> None:
    inventory = Inventory()
    inventory.replace([Have(A)])
    async with aclosing(inventory.watch()) as first:
        await anext(first)
        inventory.update([Have(B)])
        assert await first_events(inventory, batches=1) == [Have(A), Have(B), Synced()]
        assert await anext(first) == (Have(B),)


KEYS = st.sampled_from([A, B, C])
CHANGES = st.lists(
    st.one_of(
        st.builds(Have, KEYS, st.integers(0, 3)),
        st.builds(Gone, KEYS),
        st.just("take"),
    )
)


@given(CHANGES)
def test_every_watcher_ends_up_with_the_same_state(changes: Sequence[Have | Gone | str]) -> None:
    async def follow() -> None:
        inventory = Inventory()
        inventory.replace([Have(A, 0)])
        known: dict[Key, Have] = {}
        async with aclosing(inventory.watch()) as stream:
            apply(known, await anext(stream))
            for change in [*changes, Have(B, 9), "take"]:
                if isinstance(change, StoreEvent):
                    inventory.update([change])
                elif {have.key: have for have in inventory} != known:
                    apply(known, await anext(stream))
            assert known == {have.key: have for have in inventory}

    asyncio.run(follow())


def apply(known: dict[Key, Have], events: Sequence[StoreEvent]) -> None:
    for event in events:
        if isinstance(event, Have):
            known[event.key] = event
        elif isinstance(event, Gone):
            assert known.pop(event.key, None) is not None, "a Gone for a key that the watcher never knew"
