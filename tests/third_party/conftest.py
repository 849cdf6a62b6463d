"""The third-party distribution, really installed, once for all tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HARBOUR = Path(__file__).parent / "harbour"

collect_ignore = ["harbour"]  # its own tests need it installed: test_installed runs them there


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which pip has built and installed the third-party distribution with its entry points."""
    site = tmp_path_factory.mktemp("site")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir")
    alone = ("--no-index", "--no-deps", "--no-build-isolation")  # hatchling and peili are here; nothing is fetched
    command = [sys.executable, "-m", "pip", "install", *quiet, *alone, "--target", str(site), str(HARBOUR)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return site
