"""`make` says in one line what is wrong with the Python that it finds."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def venv_with(tmp_path: Path, python: str) -> tuple[int, list[str]]:
    """Exit code and error lines of scripts/venv with a `python` that is this shell script."""
    stub = tmp_path / "python-stub"
    stub.write_text(f"#!/bin/sh\n{python}\n")
    stub.chmod(0o755)
    done = subprocess.run(
        [ROOT / "scripts" / "venv", tmp_path / "venv", "test"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": str(stub)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert not (tmp_path / "venv").exists()
    return done.returncode, done.stderr.splitlines()


def test_an_old_python_is_named(tmp_path: Path) -> None:
    code, lines = venv_with(tmp_path, 'case "$2" in *print*) echo 3.9 ;; *) exit 1 ;; esac')
    assert code == 1
    assert lines == [f"peili: needs Python 3.11 or newer; PYTHON={tmp_path}/python-stub is 3.9"]


def test_a_python_without_venv_is_told_how_to_get_it(tmp_path: Path) -> None:
    python = shlex.quote(sys.executable)
    code, lines = venv_with(tmp_path, f'case "$2" in *ensurepip*) exit 1 ;; *) exec {python} "$@" ;; esac')
    assert code == 1
    assert len(lines) == 1
    assert "has no venv module; on Debian or Ubuntu: apt-get install python3." in lines[0]
