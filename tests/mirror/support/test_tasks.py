"""The delay between tries, work that is tried again, and the notification of waiting tasks."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

from peili.mirror import Backoff, Broadcast
from peili.mirror.support.tasks import Tasks, finish, is_own_failure, keep_running


def test_each_delay_is_twice_the_one_before_up_to_the_longest() -> None:
    backoff = Backoff(0.5, 3.0)
    assert [backoff.next_delay() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_reset_starts_with_the_first_delay_again() -> None:
    backoff = Backoff(0.5, 3.0)
    backoff.next_delay()
    assert backoff.delay == 1.0
    backoff.reset()
    assert backoff.next_delay() == 0.5


def test_jitter_shortens_a_delay_and_never_lengthens_it() -> None:
    taken: list[float] = []
    for _ in range(50):
        backoff = Backoff(1.0, 8.0, jitter=0.25)
        taken.append(backoff.next_delay())
        assert backoff.delay == 2.0
    assert all(0.75 <= each <= 1.0 for each in taken)
    assert len(set(taken)) > 1


@pytest.mark.parametrize("first", [0.0, 0.05])
def test_sleep_takes_at_least_the_delay_and_doubles_the_next_one(first: float) -> None:
    backoff, began = Backoff(first, 1.0), time.monotonic()
    asyncio.run(backoff.sleep())
    assert time.monotonic() - began >= first
    assert backoff.delay == 2 * first


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


def test_work_goes_on_after_errors_of_its_own_until_it_is_cancelled() -> None:
    outcomes: list[BaseException | None] = [ValueError("wrong"), asyncio.CancelledError("its own"), None]

    async def run() -> list[BaseException]:
        errors: list[BaseException] = []
        goes_on = asyncio.Event()

        async def work(_: Backoff) -> None:
            if not outcomes:
                goes_on.set()
                await asyncio.get_running_loop().create_future()
            elif (outcome := outcomes.pop(0)) is not None:
                raise outcome

        task = asyncio.create_task(keep_running(work, Backoff(0.001, 0.001), errors.append))
        await asyncio.wait_for(goes_on.wait(), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return errors

    expected = outcomes[:2]
    assert asyncio.run(run()) == expected


def test_what_a_task_starts_while_its_owner_exits_is_cancelled_and_awaited() -> None:
    async def run() -> None:
        async def rest() -> None:
            await asyncio.get_running_loop().create_future()

        async def work(tasks: Tasks) -> None:
            try:
                await rest()
            finally:
                tasks.start(rest())

        async with Tasks() as tasks:
            tasks.start(work(tasks))
            await asyncio.sleep(0)
        assert len(tasks) == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


class Work:
    """Work that ends when `go_on` is set; it may be cancelled before."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        self.outcome = ""

    async def run(self) -> None:
        self.started.set()
        try:
            await self.go_on.wait()
            self.outcome = "done"
        except asyncio.CancelledError:
            self.outcome = "cancelled"
            raise


def test_work_that_is_finished_is_not_disturbed_by_further_cancellations() -> None:
    async def main() -> None:
        work = Work()
        task = asyncio.create_task(finish(work.run(), asyncio.CancelledError()))
        await work.started.wait()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        work.go_on.set()
        await asyncio.wait({task})
        assert task.cancelled()
        assert work.outcome == "done"

    asyncio.run(main())


def test_the_first_cancellation_is_passed_on_to_work_that_is_finished() -> None:
    async def main() -> None:
        work = Work()
        task = asyncio.create_task(finish(work.run()))
        await work.started.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert work.outcome == "cancelled"

    asyncio.run(main())


def test_an_error_of_work_that_is_finished_is_raised() -> None:
    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(finish(fail()))


def test_whose_failure_an_error_is() -> None:
    group = BaseExceptionGroup("", [asyncio.CancelledError()])
    errors = (LookupError(), asyncio.CancelledError(), group, KeyboardInterrupt(), SystemExit(), GeneratorExit())

    async def main() -> None:
        assert [*map(is_own_failure, errors)] == [True, True, True, False, False, False]
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        assert [*map(is_own_failure, errors)] == [True, False, False, False, False, False]
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)

    assert is_own_failure(group)
    for end in (KeyboardInterrupt(), SystemExit(), GeneratorExit()):
        assert not is_own_failure(BaseExceptionGroup("", [LookupError(), BaseExceptionGroup("", [end])]))
    asyncio.run(main())
