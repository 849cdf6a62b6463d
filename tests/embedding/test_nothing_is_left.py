"""Whatever it was embedded in, a mirror that has left leaves no task, thread, socket or warning behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.certificates import make_certificate

from peili.mirror.testing import make_layout

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("how", ["serve", "starlette", "fastapi"])
def test_nothing_is_left(how: str, tmp_path: Path) -> None:
    tls = make_certificate(tmp_path / "tls").cert.parent
    layout = make_layout(tmp_path / "layout", layers=[10]).path
    python = [sys.executable, "-X", "dev", "-W", "error"]
    command = [*python, "-m", "tests.embedding.coming_and_going", how, str(tls), str(layout)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    # That containerd is not there is said, as it has to be, and nothing else.
    complaints = [line for line in done.stderr.splitlines() if "/nowhere/containerd.sock" not in line]
    assert not complaints, "\n".join(complaints)
    assert done.stdout == "nothing is left\n"
