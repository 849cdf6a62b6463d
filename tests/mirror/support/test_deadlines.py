"""Timeouts that distinguish a silent peer from a blocked loop."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress
from typing import Any

import pytest

from peili.mirror.support.deadlines import ON_OVERRUN, Countdown, Deadline

pytestmark = pytest.mark.anyio

SECONDS = 0.2


async def test_a_deadline_that_passes_raises_timeout_error() -> None:
    before = asyncio.Event()
    asyncio.get_running_loop().call_later(SECONDS / 2, before.set)
    with pytest.raises(TimeoutError):
        async with Deadline(SECONDS):
            await asyncio.Event().wait()
    assert before.is_set()


async def test_a_deadline_that_is_met_cancels_nothing_later() -> None:
    async with Deadline(SECONDS):
        await asyncio.sleep(0)
    await asyncio.sleep(2 * SECONDS)


async def test_a_cancellation_from_outside_is_passed_on() -> None:
    async def waiting() -> None:
        async with Deadline(60):
            await asyncio.Event().wait()

    task = asyncio.create_task(waiting())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("begins", [0, 0.5, 0.98], ids=["at first", "in the middle", "at last"])
async def test_data_that_arrived_while_the_loop_was_blocked_is_received(begins: float) -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()

    def stand_still() -> None:
        time.sleep(2 * SECONDS)
        theirs.send(b"x")

    with ours, theirs:
        ours.setblocking(False)
        loop.call_later(begins * SECONDS, stand_still)
        async with Deadline(SECONDS):
            assert await loop.sock_recv(ours, 1) == b"x"


async def test_a_deadline_ends_on_a_loop_that_is_always_late() -> None:
    async def busy() -> None:
        while True:
            time.sleep(SECONDS / 5)  # noqa: ASYNC251 - a loop that is kept busy is what is tested
            await asyncio.sleep(0)

    task = asyncio.create_task(busy())
    with pytest.raises(TimeoutError):
        async with Deadline(SECONDS):
            await asyncio.Event().wait()
    task.cancel()


async def test_a_restarted_or_cancelled_countdown_does_not_end() -> None:
    over = asyncio.Event()
    countdown = Countdown(SECONDS, over.set)
    for _ in range(4):
        await asyncio.sleep(SECONDS / 2)
        countdown.restart()
    assert not over.is_set()
    await over.wait()
    over.clear()
    cancelled = Countdown(SECONDS, over.set)
    cancelled.cancel()
    await asyncio.sleep(2 * SECONDS)
    assert not over.is_set()


async def test_a_block_that_goes_on_after_the_end_is_reported() -> None:
    overrun: asyncio.Future[asyncio.Task[Any]] = asyncio.get_running_loop().create_future()
    token = ON_OVERRUN.set(overrun.set_result)
    try:
        async with Deadline(0.01):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
            assert await overrun is asyncio.current_task()
    finally:
        ON_OVERRUN.reset(token)
