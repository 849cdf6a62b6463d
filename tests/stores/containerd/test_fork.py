"""A host agent that embeds the store may fork: its children must not crash in gRPC's fork handlers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.lab.containerd import Containerd

ROOT = Path(__file__).parents[3]


def test_children_forked_while_a_stream_is_open_do_not_crash(shared_containerd: Containerd) -> None:
    # Newer versions of Python warn about a fork in a process with threads.
    command = [
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",
        "-m",
        "tests.stores.containerd.forking",
        str(shared_containerd.socket),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("before", [None, "1"])
def test_the_import_restores_the_environment_variable(before: str | None) -> None:
    check = f"import os, peili.stores.containerd; assert os.environ.get('GRPC_ENABLE_FORK_SUPPORT') == {before!r}"
    environment = {} if before is None else {"GRPC_ENABLE_FORK_SUPPORT": before}
    subprocess.run([sys.executable, "-c", check], env=environment, check=True, timeout=60)


def test_only_one_module_imports_grpc() -> None:
    sources = [path for folder in ("mirror", "routers", "stores", "adapters") for path in (ROOT / folder).rglob("*.py")]
    importing = [path.name for path in sources if "import grpc" in path.read_text() or "from grpc" in path.read_text()]
    assert importing == ["guarded_grpc.py"]
