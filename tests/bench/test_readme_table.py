"""What README says was measured is what the committed run says: `python -m bench --show bench/results/bench.json`.
It need not show every row, but every budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bench import report, table
from bench.measure import MB_PER_SECOND, RatioOf, Row

README = Path(__file__).parents[2] / "README.md"
COMMITTED = README.parent / "bench" / "results" / "bench.json"
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
RUN = report.document(
    [
        Row("serve", "1 GiB", MB_PER_SECOND, (900.0,), "nginx", (1000.0,), RatioOf(0.9)),
        Row("serve", "a range", MB_PER_SECOND, (12.0, 13.0)),
    ],
    {},
    quick=False,
    seconds=1,
)
HEAD, RULE, GIB, PART = table.compact(RUN["rows"])


def disagreements(readme: str, run: Mapping[str, Any] | None) -> list[str]:
    """What README shows and `run` does not say, and whatever else keeps the two from being compared."""
    if BEGIN not in readme and END not in readme:
        return [] if run is None else [f"there is a run, and README shows none of it: no {BEGIN} … {END}"]
    if run is None:
        return ["README shows a run that is not there"]
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        return [f"README needs one {BEGIN} and one {END}"]
    if run["quick"]:
        return ["a quick run is no measurement"]
    said = table.compact(run["rows"])
    shown = [line for line in readme.partition(BEGIN)[2].partition(END)[0].splitlines() if line.strip()]
    if not set(shown) & set(said[2:]):
        return ["README shows no row of the run", *shown]
    left_out = [line for line, row in zip(said[2:], run["rows"], strict=True) if row["budget"] and line not in shown]
    return [*(line for line in shown if line not in said), *(f"README leaves out: {line}" for line in left_out)]


def test_readme_shows_only_what_was_measured() -> None:
    run = report.read(COMMITTED) if COMMITTED.exists() else None
    assert disagreements(README.read_text(encoding="utf-8"), run) == []


def readme(*lines: str) -> str:
    return "\n".join(["# Title", BEGIN, "", *lines, "", END, "| not | ours |", ""])


@pytest.mark.parametrize("shown", [(HEAD, RULE, GIB, PART), (HEAD, RULE, GIB)], ids=["all", "some"])
def test_rows_of_the_run_may_be_shown(shown: tuple[str, ...]) -> None:
    assert disagreements(readme(*shown), RUN) == []


def test_a_figure_that_was_changed_by_hand_is_found() -> None:
    changed = GIB.replace("900", "990")
    assert changed in disagreements(readme(HEAD, RULE, changed, PART), RUN)


def test_a_budget_that_is_left_out_is_found() -> None:
    assert disagreements(readme(HEAD, RULE, PART), RUN) == [f"README leaves out: {GIB}"]


@pytest.mark.parametrize(
    ("text", "run"),
    [
        ("# Title", RUN),
        (readme(HEAD, RULE, GIB), None),
        (readme(HEAD, RULE), RUN),
        (readme(HEAD, RULE, GIB).replace(END, ""), RUN),
        (readme(HEAD, RULE, GIB), {**RUN, "quick": True}),
    ],
    ids=["only a run", "only README", "a table without rows", "no end", "a quick run"],
)
def test_one_without_the_other_is_found(text: str, run: Mapping[str, Any] | None) -> None:
    assert disagreements(text, run)


def test_with_neither_there_is_nothing_to_compare() -> None:
    assert disagreements("# Title", None) == []
