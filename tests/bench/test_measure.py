"""What a row says of its samples, and how samples are taken."""

from __future__ import annotations

import pytest
from bench.measure import MB_PER_SECOND, MILLISECONDS, AtMost, Budget, Ratio, RatioOf, Row, Spread, take_turns
from hypothesis import given
from hypothesis import strategies as st

FIGURES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=9).map(tuple)


def row(unit: str, ours: tuple[float, ...], reference: tuple[float, ...] = (), budget: Budget | None = None) -> Row:
    units = {each.name: each for each in (MB_PER_SECOND, MILLISECONDS)}
    return Row("serve", "a blob", units[unit], ours, "nginx" if reference else "", reference, budget)


def test_a_spread_is_the_median_between_the_least_and_the_most() -> None:
    assert Spread.of([5, 1, 3, 40]) == Spread(4, 1, 40)


@pytest.mark.parametrize(("unit", "ours", "theirs"), [("MB/s", 300, 100), ("ms", 10, 30)])
def test_a_ratio_above_1_means_that_ours_is_better(unit: str, ours: float, theirs: float) -> None:
    ratio = row(unit, (ours,), (theirs,)).ratio
    assert ratio is not None
    assert ratio.value == pytest.approx(3)


def test_the_ratio_is_that_of_the_medians_and_its_spread_the_middle_half_of_the_rounds() -> None:
    assert row("MB/s", (8, 9, 2, 1, 3), (2, 3, 4, 5, 6)).ratio == Ratio(0.75, 0.5, 3)
    assert row("ms", (2, 3, 4, 5, 6), (8, 9, 2, 1, 3)).ratio == Ratio(0.75, 0.5, 3)


@given(FIGURES)
def test_what_is_held_against_itself_is_even(figures: tuple[float, ...]) -> None:
    assert row("ms", figures, figures).ratio == Ratio(1, 1, 1)


@pytest.mark.parametrize("reference", [(), (0.0, 1.0)], ids=["no reference", "nothing measured"])
def test_there_is_no_ratio_to_nothing(reference: tuple[float, ...]) -> None:
    assert row("ms", (1, 1), reference).ratio is None


@pytest.mark.parametrize(
    ("ours", "reference", "budget", "met"),
    [
        ((9, 9, 1), (10, 10, 10), RatioOf(0.9), True),
        ((8, 8, 99), (10, 10, 10), RatioOf(0.9), False),
        ((8, 8, 8), (), RatioOf(0.9), False),
        ((10, 10, 99), (), AtMost(10), True),
        ((1, 11, 11), (), AtMost(10), False),
        ((1, 1, 1), (), None, None),
    ],
)
def test_the_median_has_to_keep_to_the_budget(
    ours: tuple[float, ...], reference: tuple[float, ...], budget: Budget | None, met: bool | None
) -> None:
    assert row("MB/s", ours, reference, budget).met is met


def test_sides_take_turns_at_beginning_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []

    def side(name: str) -> int:
        calls.append(name)
        return len(calls)

    samples = take_turns([lambda: side("ours"), lambda: side("theirs")], rounds=3)
    assert calls == ["ours", "theirs", "ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert samples == [(3, 6, 7), (4, 5, 8)]
