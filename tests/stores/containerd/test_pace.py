"""How often everything is listed."""

from __future__ import annotations

import pytest

from peili.stores.containerd import pace as module
from peili.stores.containerd.pace import COST, LEAST_PAUSE, QUICK, SELDOM, SOON, Pace


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def list_once(pace: Pace, clock: Clock, took: float = 0.0) -> float:
    """List as soon as that is due; the seconds that it was waited for."""
    waited = pace.remaining()
    clock.now += waited
    assert pace.is_due()
    with pace.measured():
        clock.now += took
    return waited


def test_while_nothing_changes_it_becomes_seldom(clock: Clock) -> None:
    pace = Pace(quick=False)
    list_once(pace, clock)
    waits = [list_once(pace, clock) for _ in range(8)]
    assert waits[:4] == [SOON, 2 * SOON, 4 * SOON, 8 * SOON]
    assert waits[-2:] == [SELDOM, SELDOM]


def test_where_only_listing_tells_it_stays_quick(clock: Clock) -> None:
    pace = Pace(quick=True)
    list_once(pace, clock)
    assert [list_once(pace, clock) for _ in range(4)] == [SOON, QUICK, QUICK, QUICK]


def test_a_change_is_listed_at_once_and_once_more_soon(clock: Clock) -> None:
    pace = Pace(quick=False)
    for _ in range(6):
        list_once(pace, clock)
    clock.now += 10
    pace.hurry()
    assert list_once(pace, clock) == 0
    assert list_once(pace, clock) == SOON


def test_many_changes_are_listed_together(clock: Clock) -> None:
    pace = Pace(quick=False)
    list_once(pace, clock)
    pace.hurry()
    assert list_once(pace, clock) == pytest.approx(LEAST_PAUSE)


@pytest.mark.parametrize("quick", [True, False])
def test_a_slow_listing_is_not_repeated_at_once(clock: Clock, quick: bool) -> None:
    pace = Pace(quick=quick)
    list_once(pace, clock, took=3.0)
    pace.hurry()
    assert list_once(pace, clock) == pytest.approx(3.0 * COST)
