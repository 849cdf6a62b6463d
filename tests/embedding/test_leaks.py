"""A mirror that has exited leaves no task, thread, socket or warning behind, in every framework."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.certificates import make_certificate

from peili.mirror.testing import make_layout

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("framework", ["serve", "starlette", "fastapi"])
def test_an_exited_mirror_leaves_nothing_behind(framework: str, tmp_path: Path) -> None:
    tls = make_certificate(tmp_path / "tls").cert.parent
    layout = make_layout(tmp_path / "layout", layers=[10]).path
    python = [sys.executable, "-X", "dev", "-W", "error"]
    command = [*python, "-m", "tests.embedding.leak_check", framework, str(tls), str(layout)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    # The only expected log line says that containerd is not running.
    unexpected = [line for line in done.stderr.splitlines() if "/nowhere/containerd.sock" not in line]
    assert not unexpected, "\n".join(unexpected)
    assert done.stdout == "no leaks\n"
