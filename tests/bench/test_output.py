"""The table, the document and the plot of some rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench import report, table
from bench.measure import MB_PER_SECOND, MEBIBYTES, MILLISECONDS, PER_SECOND, AtMost, Busy, Place, RatioOf, Row, Spread

ROWS = [
    Row("serve", "1 GiB", MB_PER_SECOND, (900.0, 1100.0, 1000.0), "nginx", (1000.0, 1000.0, 1000.0), RatioOf(0.9)),
    Row("misses", "a miss", MILLISECONDS, (12.0, 13.0), budget=AtMost(10)),
    Row("serve", "a range", MB_PER_SECOND, (5.0,), "nginx", (6.0,), client=Busy((0.95,), (0.25,))),
    Row("memory", "idle", MEBIBYTES, (57.625,)),
]
OBJECTS = [report.as_object(row) for row in ROWS]
GROWTH = [
    Row("growth", f"a miss, {at} peers", unit, (at / 2, float(at), at * 2.0), place=Place("known peers", at, what))
    for what, unit in (("a miss", MILLISECONDS), ("HEAD", PER_SECOND))
    for at in (100, 10)
]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_line_of_the_table_has_the_figures_the_ratio_and_the_verdict() -> None:
    met, missed, _, plain = map(table.line, OBJECTS)
    assert cells(met) == ["1 GiB", "1,000 MB/s", "1,000 MB/s", "nginx", "1.00", "0.95 … 1.05", "≥ 0.9 x", "yes"]
    assert cells(missed) == ["a miss", "12.5 ms", "", "", "", "12.2 … 12.8", "≤ 10 ms", "NO"]
    assert cells(plain) == ["idle", "57.6 MiB", "", "", "", "", "", ""]


def test_the_verdict_names_the_budgets_that_are_not_met() -> None:
    assert table.verdict(OBJECTS) == "budgets: 1 of 2 met; not: a miss"
    assert table.verdict(OBJECTS[:1]) == "budgets: 1 of 1 met"


def test_a_document_shows_the_same_cells_without_padding() -> None:
    names, rule, *lines = table.compact(OBJECTS)
    assert names == "| what | ours | reference | against | ratio | middle half | budget | met |"
    assert rule == "|---|---|---|---|---|---|---|---|"
    assert [cells(each) for each in lines] == [cells(table.line(each)) for each in OBJECTS]
    assert lines[0] == "| 1 GiB | 1,000 MB/s | 1,000 MB/s | nginx | 1.00 | 0.95 … 1.05 | ≥ 0.9 x | yes |"


def test_a_note_names_the_figures_that_the_client_limited() -> None:
    assert table.notes(OBJECTS) == "the client was the limit in: a range (ours)"
    assert table.notes(OBJECTS[:2]) == ""


def test_the_lines_stand_under_a_header_of_markdown() -> None:
    names, rule = table.header().splitlines()
    assert len(names) == len(rule) == len(table.line(OBJECTS[0]))
    assert [len(cells(each)) for each in (names, rule, table.line(OBJECTS[0]))] == [8, 8, 8]


def test_the_document_has_every_sample_and_the_machine(tmp_path: Path) -> None:
    machine = report.machine()
    file = tmp_path / "new" / "bench.json"
    report.write(file, report.document(ROWS, machine, is_whole=False, seconds=1.2))
    read = json.loads(file.read_text())
    assert [row["ours"]["samples"] for row in read["rows"]] == [list(row.ours) for row in ROWS]
    assert [row["met"] for row in read["rows"]] == [True, False, None, None]
    assert [row["ratio"] for row in read["rows"]] == [1.0, None, pytest.approx(5 / 6, abs=1e-4), None]
    assert read["rows"][0]["spread"] == {"median": 1.0, "lower": 0.95, "upper": 1.05}
    assert [row["client"] for row in read["rows"]][:2] == [None, None]
    client = read["rows"][2]["client"]
    assert (client["ours"]["samples"], client["reference"]["samples"], client["limited"]) == ([0.95], [0.25], ["ours"])
    assert read["machine"] == machine
    assert machine["processors"] >= 1
    assert machine["packages"]["uvicorn"]
    assert read["is_whole"] is False


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not what `python -m bench` writes"),
        ("{", "not what `python -m bench` writes"),
        ('{"format": 1, "rows": []}', "written in format 1"),
    ],
)
def test_other_files_are_not_read(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bench.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"{file}: {message}"):
        report.read(file)


def test_a_failed_write_keeps_the_old_document(tmp_path: Path) -> None:
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
        "a miss": [(10, Spread(10, 7.5, 15)), (100, Spread(100, 75, 150))]
    }
    plots.draw([*ROWS, *GROWTH], tmp_path / "growth.svg")
    assert "<svg" in (tmp_path / "growth.svg").read_text()


def test_a_budget_is_a_line_only_in_the_plot_of_its_figure(tmp_path: Path) -> None:
    plots = pytest.importorskip(
        "bench.plots", reason="the plots need matplotlib: the extra `bench`", exc_type=ImportError
    )
    place = Place("blobs", 5, "a miss")
    rows = [*GROWTH, Row("growth", "a miss, 5 blobs", MILLISECONDS, (1.0,), budget=AtMost(10), place=place)]
    assert plots.limits(rows, "blobs", MILLISECONDS) == {"a miss": 10}
    assert plots.limits(rows, "known peers", MILLISECONDS) == plots.limits(rows, "blobs", PER_SECOND) == {}
    plots.draw(rows, tmp_path / "growth.svg")
    assert "<!-- budget of a miss: 10 ms -->" in (tmp_path / "growth.svg").read_text()


def test_without_growth_there_is_nothing_to_draw(tmp_path: Path) -> None:
    plots = pytest.importorskip(
        "bench.plots", reason="the plots need matplotlib: the extra `bench`", exc_type=ImportError
    )
    with pytest.raises(ValueError, match="no row of growth"):
        plots.draw(ROWS, tmp_path / "growth.svg")
