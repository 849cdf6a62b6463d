"""The figures in the documentation are those of the committed run: `python -m bench --publish` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bench import pages, report, table
from bench.__main__ import FULL
from bench.measure import MB_PER_SECOND, RatioOf, Row

BEGIN, END = pages.BEGIN, pages.END
README = pages.ROOT / "README.md"
BENCHMARKS = pages.ROOT / "docs" / "benchmarks.md"
SHOWN = [Row("serve", what, MB_PER_SECOND, (900.0,), "nginx", (1000.0,)) for what in pages.SHOWN_IN_README]
RUN = report.document(
    [
        Row("serve", "1 GiB", MB_PER_SECOND, (900.0,), "nginx", (1000.0,), RatioOf(0.9)),
        Row("serve", "a range", MB_PER_SECOND, (12.0, 13.0)),
        *SHOWN,
    ],
    {},
    quick=False,
    seconds=1,
)


@pytest.mark.parametrize("page", [README, BENCHMARKS], ids=lambda page: page.name)
def test_a_page_shows_what_was_measured(page: Path) -> None:
    lines = pages.pages(report.read(FULL))[page]
    text = page.read_text(encoding="utf-8")
    assert pages.with_table(text, lines) == text, "run: python -m bench --publish"


def test_one_page_has_all_rows_and_readme_has_four() -> None:
    found = pages.pages(RUN)
    assert found[BENCHMARKS] == table.compact(RUN["rows"])
    assert found[README] == [
        "| what | ours | reference | against |",
        "|---|---|---|---|",
        *(f"| {what} | 900 MB/s | 1,000 MB/s | nginx |" for what in pages.SHOWN_IN_README),
    ]


def page(*lines: str) -> str:
    return "\n".join(["# Title", f"{BEGIN}\n", *lines, f"\n{END}", "| not | ours |", ""])


def test_a_table_replaces_the_one_before() -> None:
    old, new = table.compact(RUN["rows"][:2]), table.compact(RUN["rows"])
    assert pages.with_table(page(*old), new) == page(*new)
    assert pages.with_table(page(*new), new) == page(*new)


def test_a_figure_that_was_changed_by_hand_is_found() -> None:
    lines = table.compact(RUN["rows"])
    changed = page(*lines).replace("900", "990")
    assert pages.with_table(changed, lines) != changed


@pytest.mark.parametrize("text", ["# Title", page().replace(END, ""), page() + page()])
def test_a_page_without_its_marks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a page needs one"):
        pages.with_table(text, [])


@pytest.mark.parametrize(
    ("run", "message"),
    [({**RUN, "quick": True}, "quick"), ({**RUN, "rows": RUN["rows"][:3]}, "does not have")],
    ids=["a quick run", "a run without some rows"],
)
def test_a_run_that_says_too_little_is_not_published(run: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pages.pages(run)


def test_the_results_in_git_are_small() -> None:
    kept = [file for file in FULL.parent.iterdir() if file.name in {FULL.name, FULL.with_suffix(".png").name}]
    assert sum(file.stat().st_size for file in kept) < 100_000
