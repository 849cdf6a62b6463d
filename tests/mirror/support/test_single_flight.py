"""`SingleFlight`: tasks that need the same result share one call."""

from __future__ import annotations

import asyncio

import pytest

from peili.mirror import Tasks, Unavailable
from peili.mirror.support.single_flight import SingleFlight

pytestmark = pytest.mark.anyio


async def test_a_call_is_shared_and_survives_those_who_leave() -> None:
    calls, answer = 0, asyncio.Event()

    async def work() -> int:
        nonlocal calls
        calls += 1
        await answer.wait()
        return calls

    async with Tasks() as tasks:
        flight = SingleFlight[str, int](tasks)
        waiting = [asyncio.create_task(flight.call("a", work)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        answer.set()
        assert await asyncio.gather(*waiting[1:]) == [1, 1]
        assert await flight.call("a", work) == 2  # a later call is a new one


async def test_an_error_is_raised_to_all() -> None:
    async def fail() -> None:
        raise ValueError("no")

    async with Tasks() as tasks:
        flight = SingleFlight[str, None](tasks)
        errors = await asyncio.gather(*(flight.call("a", fail) for _ in range(3)), return_exceptions=True)
    assert [repr(each) for each in errors] == ["ValueError('no')"] * 3


async def test_the_end_of_the_owner_ends_the_wait() -> None:
    tasks = Tasks()
    flight = SingleFlight[str, bool](tasks)
    waiting = asyncio.create_task(flight.call("a", asyncio.Event().wait))
    await asyncio.sleep(0)
    tasks.cancel()
    with pytest.raises(Unavailable):
        await waiting
