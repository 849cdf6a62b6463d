"""The figures in the documentation are those of the committed runs: `python -m bench --publish` writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import pages, report, table
from bench.__main__ import MEASURED
from bench.measure import MB_PER_SECOND, RatioOf, Row

BEGIN, END = pages.BEGIN, pages.END
README = pages.ROOT / "README.md"
BENCHMARKS = pages.ROOT / "docs" / "benchmarks.md"
SHOWN = [Row("serve", what, MB_PER_SECOND, (900.0,), "nginx", (1000.0,)) for what in pages.SHOWN_IN_README]
HOST = {"commit": "abc1234", "python": "3.11.7", "processors": 2, "load_average": 0.25}
RUN = report.document(
    [
        Row("serve", "1 GiB", MB_PER_SECOND, (900.0,), "nginx", (1000.0,), RatioOf(0.9)),
        Row("relay", "a range", MB_PER_SECOND, (12.0, 13.0)),
        *SHOWN,
    ],
    HOST,
    is_whole=True,
    seconds=3,
    groups={"serve": 1, "relay": 2},
)


@pytest.mark.parametrize("page", [README, BENCHMARKS], ids=lambda page: page.name)
def test_a_page_shows_what_was_measured(page: Path) -> None:
    lines = pages.pages(report.kept(MEASURED, report.RESULTS))[page]
    text = page.read_text(encoding="utf-8")
    assert pages.with_table(text, lines) == text, "run: python -m bench --publish"


def test_one_page_has_all_rows_and_readme_has_four(tmp_path: Path) -> None:
    assert report.keep(RUN, tmp_path) == ["serve", "relay"]
    runs = report.kept(["relay", "serve", "home"], tmp_path)
    [relayed] = runs[0]["rows"]
    found = pages.pages(runs)
    assert found[BENCHMARKS] == [
        *table.compact([relayed, *runs[1]["rows"]]),
        "",
        "| group | measured on | commit | Python | processors | load before |",
        "|---|---|---|---|---|---|",
        f"| relay | {RUN['when'][:10]} | abc1234 | 3.11.7 | 2 | 0.2 |",
        f"| serve | {RUN['when'][:10]} | abc1234 | 3.11.7 | 2 | 0.2 |",
    ]
    assert found[README] == [
        "| what | ours | reference | against |",
        "|---|---|---|---|",
        *(f"| {what} | 900 MB/s | 1,000 MB/s | nginx |" for what in pages.SHOWN_IN_README),
    ]


def test_a_run_replaces_only_the_groups_that_it_measured(tmp_path: Path) -> None:
    report.keep(RUN, tmp_path)
    again = report.document(
        [Row("serve", "2 GiB", MB_PER_SECOND, (1.0,))], HOST, is_whole=True, seconds=1, groups={"serve": 1}
    )
    report.keep(again, tmp_path)
    serve, relay = report.kept(["serve", "relay"], tmp_path)
    assert [row["what"] for row in serve["rows"]] == ["2 GiB"]
    assert [row["what"] for row in relay["rows"]] == ["a range"]


def test_a_group_that_failed_is_not_kept(tmp_path: Path) -> None:
    failed = report.document([Row("serve", "2 GiB", MB_PER_SECOND, (1.0,))], HOST, is_whole=True, seconds=1, groups={})
    assert report.keep(failed, tmp_path) == []
    assert not any(tmp_path.iterdir())


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


def test_a_run_that_says_too_little_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="measure whole groups"):
        report.keep({**RUN, "is_whole": False}, tmp_path)
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="rows that no run has"):
        pages.pages([{**RUN, "rows": RUN["rows"][:3]}])


def test_the_results_in_git_are_small() -> None:
    names = [f"{group}.json" for group in MEASURED]
    kept = [file for file in report.RESULTS.iterdir() if file.name in {"growth.png", *names}]
    assert len(kept) > 1
    assert sum(file.stat().st_size for file in kept) < 150_000
