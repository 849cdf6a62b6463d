"""After a killed run, no file is half written. The next `apply` finishes the work, and the next `remove` undoes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.adapters.containerd.hosts_toml import killed_runs


@pytest.mark.parametrize(("kind", "least"), [("nothing exists", 8), ("an empty directory", 5), ("files", 20)])
def test_a_run_may_be_killed_before_any_of_its_changes(kind: str, least: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", killed_runs.__name__, str(tmp_path), kind]
    root = Path(__file__).parents[4]
    done = subprocess.run(command, cwd=root, env={**os.environ}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["points"]["apply"] >= least
    assert found["points"]["remove"] >= 3
