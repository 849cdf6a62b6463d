"""The table, the document and the plot of some rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench import report, table
from bench.measure import MB_PER_SECOND, MEBIBYTES, MILLISECONDS, PER_SECOND, AtMost, Place, RatioOf, Row, Spread

ROWS = [
    Row("serve", "1 GiB", MB_PER_SECOND, (900.0, 1100.0, 1000.0), "nginx", (1000.0, 1000.0, 1000.0), RatioOf(0.9)),
    Row("misses", "a miss", MILLISECONDS, (12.0, 13.0), budget=AtMost(10)),
    Row("memory", "idle", MEBIBYTES, (57.625,)),
]
GROWTH = [
    Row("growth", f"a miss, {at} peers", unit, (at / 2, float(at), at * 2.0), place=Place("known peers", at, what))
    for what, unit in (("a miss", MILLISECONDS), ("HEAD", PER_SECOND))
    for at in (100, 10)
]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_line_of_the_table_has_the_figures_the_ratio_and_the_verdict() -> None:
    met, missed, plain = map(table.line, ROWS)
    assert cells(met) == ["1 GiB", "1,000 MB/s", "1,000 MB/s", "nginx", "1.00", "0.95 … 1.05", "≥ 0.9 x", "yes"]
    assert cells(missed) == ["a miss", "12.5 ms", "", "", "", "12.0 … 13.0", "≤ 10 ms", "NO"]
    assert cells(plain) == ["idle", "57.6 MiB", "", "", "", "", "", ""]


def test_the_verdict_names_the_budgets_that_are_not_met() -> None:
    assert table.verdict(ROWS) == "budgets: 1 of 2 met; not: a miss"
    assert table.verdict(ROWS[:1]) == "budgets: 1 of 1 met"


def test_the_lines_stand_under_a_header_of_markdown() -> None:
    names, rule = table.header().splitlines()
    assert len(names) == len(rule) == len(table.line(ROWS[0]))
    assert [len(cells(each)) for each in (names, rule, table.line(ROWS[0]))] == [8, 8, 8]


def test_the_document_has_every_sample_and_the_machine(tmp_path: Path) -> None:
    machine = report.machine()
    file = tmp_path / "new" / "bench.json"
    report.write(file, report.document(ROWS, machine, quick=True, seconds=1.2))
    read = json.loads(file.read_text())
    assert [row["ours"]["samples"] for row in read["rows"]] == [list(row.ours) for row in ROWS]
    assert [row["met"] for row in read["rows"]] == [True, False, None]
    assert read["rows"][0]["ratio"] == {"value": 1.0, "low": 0.95, "high": 1.05}
    assert read["machine"] == machine
    assert machine["processors"] >= 1
    assert machine["packages"]["uvicorn"]
    assert read["quick"] is True


def test_a_document_tells_the_same_table() -> None:
    rows = [*ROWS, *GROWTH, Row("requests", "HEAD", PER_SECOND, (5.0,), client=0.95)]
    read = json.loads(json.dumps(report.document(rows, report.machine(), quick=False, seconds=1)))
    assert report.rows_of(read) == rows
    assert "the client itself was the limit in: HEAD" in table.verdict(report.rows_of(read))


def test_a_document_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="this is format 1, not 2"):
        report.rows_of({"format": 1, "rows": []})


def test_a_document_that_can_not_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    report.write(file, {"run": 1})
    with pytest.raises(TypeError):
        report.write(file, {"run": object()})
    assert json.loads(file.read_text()) == {"run": 1}


def test_the_machine_fits_a_line() -> None:
    line = report.summary(report.machine())
    assert "\n" not in line
    assert "Python 3." in line


def test_growth_is_drawn_from_small_to_large(tmp_path: Path) -> None:
    plots = pytest.importorskip(
        "bench.plots", reason="the plots need matplotlib: the extra `bench`", exc_type=ImportError
    )
    assert plots.lines(GROWTH, "known peers", MILLISECONDS) == {
        "a miss": [(10, Spread(10, 5, 20)), (100, Spread(100, 50, 200))]
    }
    plots.draw([*ROWS, *GROWTH], tmp_path / "growth.svg")
    assert "<svg" in (tmp_path / "growth.svg").read_text()


def test_without_growth_there_is_nothing_to_draw(tmp_path: Path) -> None:
    plots = pytest.importorskip(
        "bench.plots", reason="the plots need matplotlib: the extra `bench`", exc_type=ImportError
    )
    with pytest.raises(ValueError, match="no row of growth"):
        plots.draw(ROWS, tmp_path / "growth.svg")
