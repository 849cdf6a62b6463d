"""The figures of a row, and how samples are taken in turns."""

from __future__ import annotations

import pytest
from bench.measure import (
    MB_PER_SECOND,
    MILLISECONDS,
    AtMost,
    AtMostMore,
    Budget,
    Busy,
    RatioOf,
    Row,
    Spread,
    take_turns,
)
from hypothesis import given
from hypothesis import strategies as st

FIGURES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=9).map(tuple)


def row(unit: str, ours: tuple[float, ...], reference: tuple[float, ...] = (), budget: Budget | None = None) -> Row:
    units = {each.name: each for each in (MB_PER_SECOND, MILLISECONDS)}
    return Row("serve", "a blob", units[unit], ours, "nginx" if reference else "", reference, budget)


@pytest.mark.parametrize(
    ("samples", "spread"),
    [((7,), Spread(7, 7, 7)), ((4, 2), Spread(3, 2.5, 3.5)), ((9, 1, 3, 5, 40), Spread(5, 3, 9))],
)
def test_a_spread_is_the_median_between_the_quartiles(samples: tuple[float, ...], spread: Spread) -> None:
    assert Spread.of(samples) == spread


@pytest.mark.parametrize(("unit", "ours", "theirs"), [("MB/s", 300, 100), ("ms", 10, 30)])
def test_a_ratio_above_1_means_that_ours_is_better(unit: str, ours: float, theirs: float) -> None:
    assert row(unit, (ours,), (theirs,)).ratio == pytest.approx(3)


def test_the_ratio_is_that_of_the_medians() -> None:
    found = row("MB/s", (1, 2, 30), (4, 20, 3))
    assert found.ratio == 2 / 4


def test_a_reference_in_two_states_is_seen_in_the_spread_of_the_rounds() -> None:
    found = row("MB/s", (40, 40, 40, 40, 40), (80, 40, 80, 40, 80))
    assert (found.ratio, found.spread) == (0.5, Spread(0.5, 0.5, 1))


def test_without_a_reference_the_spread_is_that_of_our_figures() -> None:
    assert row("MB/s", (1, 2, 3, 4, 5)).spread == Spread(3, 2, 4)


@given(FIGURES)
def test_a_comparison_with_itself_has_the_ratio_1(figures: tuple[float, ...]) -> None:
    found = row("ms", figures, figures)
    assert (found.ratio, found.spread) == (1, Spread(1, 1, 1))


@pytest.mark.parametrize("reference", [(), (0.0, 0.0, 1.0)], ids=["no reference", "nothing measured"])
def test_there_is_no_ratio_to_zero(reference: tuple[float, ...]) -> None:
    assert row("ms", (1, 1, 1), reference).ratio is None


def test_a_round_with_nothing_measured_has_no_ratio_and_the_medians_have_one() -> None:
    found = row("ms", (2, 2, 2), (0.0, 1.0, 1.0))
    assert (found.ratio, found.spread) == (0.5, None)


@pytest.mark.parametrize(
    ("ours", "reference", "budget", "met"),
    [
        ((9, 9, 1), (10, 10, 10), RatioOf(0.9), True),
        ((8, 8, 99), (10, 10, 10), RatioOf(0.9), False),
        ((10, 20, 30), (25, 10, 22), RatioOf(1), False),
        ((8, 8, 8), (), RatioOf(0.9), False),
        ((10, 10, 99), (), AtMost(10), True),
        ((1, 11, 11), (), AtMost(10), False),
        ((1, 1, 1), (), None, None),
    ],
)
def test_a_budget_applies_to_the_median(
    ours: tuple[float, ...], reference: tuple[float, ...], budget: Budget | None, met: bool | None
) -> None:
    assert row("MB/s", ours, reference, budget).met is met


@pytest.mark.parametrize(
    ("busy", "limited"),
    [
        (Busy((0.5, 0.95, 0.99), (0.5, 0.5, 0.99)), ("ours",)),
        (Busy((0.1,), (0.95,)), ("reference",)),
        (Busy((0.95,), (0.95,)), ("ours", "reference")),
        (Busy((0.9,)), ()),
    ],
)
def test_a_client_that_computes_nearly_all_of_the_time_is_the_limit(busy: Busy, limited: tuple[str, ...]) -> None:
    assert busy.limited == limited


def test_the_order_of_the_sides_alternates_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []

    def side(name: str) -> int:
        calls.append(name)
        return len(calls)

    samples = take_turns([lambda: side("ours"), lambda: side("theirs")], rounds=3)
    assert calls == ["ours", "theirs", "ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert samples == [(3, 6, 7), (4, 5, 8)]


def test_a_single_round_is_not_warmed_up() -> None:
    calls: list[str] = []
    take_turns([lambda: calls.append("ours"), lambda: calls.append("theirs")], rounds=1)
    assert calls == ["ours", "theirs"]


@pytest.mark.parametrize(("ours", "met"), [((12.0, 12.5, 99.0), True), ((12.0, 12.6, 13.0), False)])
def test_a_budget_of_the_difference(ours: tuple[float, ...], met: bool) -> None:
    found = row("ms", ours, (10.0, 10.5, 11.0), AtMostMore(2))
    assert found.met is met
    assert AtMostMore(2).text(found.unit) == "≤ +2 ms"
