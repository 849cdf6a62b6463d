"""`python -m bench`: which rows, what it prints and writes. One row really runs, with tiny sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from bench.prepare import NEEDS, PACKAGES
from tests.lab.lab import missing_commands


@pytest.fixture
def short_path() -> Generator[Path]:
    """Not pytest's own: the path of a unix socket has to be short."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(bool(missing_commands()), reason=f"not installed: {', '.join(missing_commands())}")
def test_a_row_is_printed_and_written(short_path: Path) -> None:
    file = short_path / "results.json"
    done = bench("pull", "--quick", "--folder", short_path, "--json", file)
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text())
    time, cost = document["rows"]
    for row, unit in ((time, "s"), (cost, "CPU s")):
        assert row["unit"] == unit
        assert len(row["ours"]["samples"]) == len(row["reference"]["samples"]) == 2
        assert all(sample > 0 for sample in row["ours"]["samples"])
        assert any(line.startswith(f"| {row['what']} ") for line in done.stdout.splitlines())
    assert document["machine"]["programs"]["docker-registry"]
    assert [each.name for each in short_path.iterdir()] == ["results.json"], "something is left behind"


def test_an_unknown_row_is_answered_with_those_that_exist() -> None:
    done = bench("sevre")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(f"there is no row 'sevre'; there are: {', '.join(NEEDS)}")


def test_a_row_that_lacks_a_program_is_left_out_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = import_module("bench.__main__").main
    monkeypatch.setattr("tests.prepare.SEARCH_PATH", str(tmp_path))
    file = tmp_path / "results.json"
    assert main(["relay", "--quick", "--folder", str(tmp_path), "--json", str(file)]) == 1
    assert "relay: left out, it needs nginx-light" in capsys.readouterr().err
    assert json.loads(file.read_text())["rows"] == []


def test_what_every_row_needs_can_be_installed() -> None:
    assert NEEDS.keys() == import_module("bench.__main__").MEASURED.keys()
    assert PACKAGES.keys() >= {package for needs in NEEDS.values() for package in needs}
