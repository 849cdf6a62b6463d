"""How often the follower lists everything."""

from __future__ import annotations

import pytest

from peili.stores.containerd import follower
from peili.stores.containerd.follower import (
    FIRST_INTERVAL,
    MAX_INTERVAL,
    MAX_POLL_INTERVAL,
    MIN_PAUSE,
    PAUSE_FACTOR,
    ListSchedule,
)


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(follower, "time", clock)
    return clock


def list_once(schedule: ListSchedule, clock: Clock, took: float = 0.0) -> float:
    """Wait until the next list is due, and make it. Returns the seconds of the wait."""
    waited = schedule.remaining()
    clock.now += waited
    assert schedule.is_due()
    with schedule.time_list():
        clock.now += took
    return waited


def test_the_intervals_grow_while_nothing_changes(clock: Clock) -> None:
    schedule = ListSchedule(is_polling=False)
    list_once(schedule, clock)
    waits = [list_once(schedule, clock) for _ in range(8)]
    assert waits[:4] == [FIRST_INTERVAL, 2 * FIRST_INTERVAL, 4 * FIRST_INTERVAL, 8 * FIRST_INTERVAL]
    assert waits[-2:] == [MAX_INTERVAL, MAX_INTERVAL]


def test_the_intervals_stay_short_if_only_a_list_shows_changes(clock: Clock) -> None:
    schedule = ListSchedule(is_polling=True)
    list_once(schedule, clock)
    assert [list_once(schedule, clock) for _ in range(4)] == [
        FIRST_INTERVAL,
        MAX_POLL_INTERVAL,
        MAX_POLL_INTERVAL,
        MAX_POLL_INTERVAL,
    ]


def test_a_change_causes_a_list_at_once_and_another_one_soon(clock: Clock) -> None:
    schedule = ListSchedule(is_polling=False)
    for _ in range(6):
        list_once(schedule, clock)
    clock.now += 10
    schedule.request_list()
    assert list_once(schedule, clock) == 0
    assert list_once(schedule, clock) == FIRST_INTERVAL


def test_many_changes_cause_one_list(clock: Clock) -> None:
    schedule = ListSchedule(is_polling=False)
    list_once(schedule, clock)
    schedule.request_list()
    assert list_once(schedule, clock) == pytest.approx(MIN_PAUSE)


@pytest.mark.parametrize("is_polling", [True, False])
def test_the_pause_after_a_slow_list_is_long(clock: Clock, is_polling: bool) -> None:
    schedule = ListSchedule(is_polling=is_polling)
    list_once(schedule, clock, took=3.0)
    schedule.request_list()
    assert list_once(schedule, clock) == pytest.approx(3.0 * PAUSE_FACTOR)
