"""A run that is killed leaves nothing half done, and the next one finishes it or undoes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.adapters.containerd import killing


@pytest.mark.parametrize(("kind", "least"), [("nothing there", 8), ("an empty folder", 5), ("files", 20)])
def test_killed_before_any_of_its_changes(kind: str, least: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", killing.__name__, str(tmp_path), kind]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, env={**os.environ}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["points"]["apply"] >= least
    assert found["points"]["remove"] >= 3
