"""Waking every task that waits for a change."""

from __future__ import annotations

import asyncio

from peili.mirror.support.broadcast import Broadcast


def test_a_change_wakes_every_waiter_once() -> None:
    async def run() -> None:
        broadcast = Broadcast()
        waiters = [asyncio.create_task(broadcast.next_change.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        broadcast.notify()
        await asyncio.wait_for(asyncio.gather(*waiters), 1)
        assert not broadcast.next_change.is_set()

    asyncio.run(run())


def test_a_change_is_not_missed_if_it_was_taken_before_the_state_was_read() -> None:
    async def run() -> None:
        broadcast = Broadcast()
        changed = broadcast.next_change
        broadcast.notify()
        broadcast.notify()
        await asyncio.wait_for(changed.wait(), 1)

    asyncio.run(run())
