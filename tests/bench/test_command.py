"""`python -m bench`: every group of rows really runs, with tiny sizes, and prints and writes its rows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from bench import report, table
from bench.measure import MB_PER_SECOND, Busy, RatioOf, Row
from bench.prepare import NEEDS, PACKAGES, missing_for
from tests.support.directories import open_directory

GROUPS = [*import_module("bench.__main__").MEASURED]


@pytest.fixture
def short_path() -> Generator[Path]:
    """A folder other than pytest's: unix sockets need a short path, and nginx's workers run as another user."""
    with open_directory() as folder:
        yield folder


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_is_measured_printed_and_written(group: str, short_path: Path) -> None:
    if missing := missing_for(group):
        pytest.skip(f"not installed: {' '.join(missing)}")
    file = short_path / "results.json"
    done = bench(group, "--quick", "--folder", short_path, "--json", file)
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text())
    assert document["rows"]
    assert document["seconds"] >= document["seconds_of"][group] > 0
    for row in document["rows"]:
        assert row["row"] == group
        assert table.line(row) in done.stdout.splitlines()
        assert_is_measured(row)
    left = {each.name for each in short_path.iterdir()}
    assert left == {"results.json", *(["results.png"] if group == "growth" else [])}, "other files remain"


def assert_is_measured(row: Mapping[str, Any]) -> None:
    """Our figures are above zero, and each has a counterpart if there is a reference. CPU times may be too small for
    the kernel's clock. The numbers of blobs that were not found, and of hosts without an image, must be zero.
    """
    ours: list[float] = row["ours"]["samples"]
    theirs: list[float] = row["reference"]["samples"] if row["reference"] else []
    assert len(theirs) in (0, len(ours))
    assert bool(theirs) == bool(row["against"])
    if row["unit"] == "blobs":
        assert theirs == [0] * len(theirs)
    elif row["unit"] == "hosts":
        assert ours == [0]
    elif "CPU" not in row["unit"]:
        assert all(sample > 0 for sample in [*ours, *theirs])


def test_show_prints_the_table_of_an_earlier_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = import_module("bench.__main__").main
    rows = [
        Row("serve", "1 GiB", MB_PER_SECOND, (800.0,), "nginx", (1000.0,), RatioOf(0.9), client=Busy((0.95,), (0.5,))),
        Row("relay", "1 GiB", MB_PER_SECOND, (900.0,)),
    ]
    file = tmp_path / "bench.json"
    report.write(file, report.document(rows, {}, is_whole=True, seconds=1))
    assert main(["serve", "--show", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| 1 GiB | 800 MB/s | 1,000 MB/s | nginx | 0.80 |  | ≥ 0.9 x | NO |",
        "",
        "budgets: 0 of 1 met; not: 1 GiB",
        "the client was the limit in: 1 GiB (ours)",
    ]


def test_show_refuses_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = import_module("bench.__main__").main
    file = tmp_path / "other.json"
    file.write_text("{}")
    assert main(["--show", str(file)]) == 2
    assert capsys.readouterr().err == f"bench: {file}: not what `python -m bench` writes\n"


def test_an_unknown_row_is_an_error_that_lists_all_rows() -> None:
    done = bench("sevre")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(f"there is no row 'sevre'; there are: {', '.join(NEEDS)}")


def test_a_row_without_its_program_is_left_out_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = import_module("bench.__main__").main
    monkeypatch.setattr("tests.prepare.SEARCH_PATH", str(tmp_path))
    file = tmp_path / "results.json"
    assert main(["relay", "--quick", "--folder", str(tmp_path), "--json", str(file)]) == 1
    assert "relay: left out, it needs nginx-light" in capsys.readouterr().err
    assert json.loads(file.read_text())["rows"] == []


def test_the_packages_of_every_row_can_be_installed() -> None:
    assert [*NEEDS] == GROUPS
    assert PACKAGES.keys() >= {package for needs in NEEDS.values() for package in needs}
