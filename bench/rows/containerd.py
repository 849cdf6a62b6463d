"""Runs every test that uses containerd on every containerd release of this machine. `make test` runs a selection."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.containerd_releases import available_releases

from bench import budgets
from bench.measure import TESTS, Row
from bench.setting import Setting

GROUP = "containerd"
_TREES = ("tests/e2e", "tests/stores/containerd", "tests/adapters/containerd")
_ROOT = Path(__file__).parents[2]
_SECONDS = 3600


def rows(setting: Setting) -> Iterator[Row]:
    """Yield for each release the number of tests that pass. The output of failed tests goes to the standard error."""
    for release in available_releases()[: setting.pick(None, 1)]:
        passed, failed = _run(release.name, setting.pick(_TREES, ("tests/e2e/test_skopeo.py",)))
        what = f"tests with containerd {release.version}"
        yield Row(GROUP, what, TESTS, (passed,), "all that ran", (passed + failed,), budgets.CONTAINERD)


def _run(name: str, trees: tuple[str, ...]) -> tuple[int, int]:
    """Run the tests. Return how many passed and how many did not. Raises RuntimeError if none could be run."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", str(min(2, len(trees) - 1)), "--dist", "loadfile", *trees],
        cwd=_ROOT,
        env={**os.environ, "PEILI_CONTAINERD": name},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    last = done.stdout.rstrip().rpartition("\n")[2]
    counted = {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|errors?)", last)}
    if done.returncode:
        sys.stderr.write(done.stdout)
    if not counted:
        raise RuntimeError(f"pytest failed: {last or done.stderr}")
    return counted.pop("passed", 0), sum(counted.values())
