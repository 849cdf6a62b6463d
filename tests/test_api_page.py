"""docs/api.md matches the docstrings, and every public name has one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import peili.adapters.containerd
import peili.adapters.k3s
import peili.adapters.talos
import peili.mirror
import peili.mirror.testing
import peili.routers.dns
import peili.routers.file
import peili.routers.mdns
import peili.routers.talos
import peili.stores.containerd
import peili.stores.oci_layout

ROOT = Path(__file__).parent.parent


def test_the_page_is_what_make_docs_writes() -> None:
    command = [sys.executable, "-m", "scripts.api_page", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, ""), "griffe warns of arguments that do not exist"


@pytest.mark.parametrize(
    "module",
    [
        peili.mirror,
        peili.mirror.testing,
        peili.stores.containerd,
        peili.stores.oci_layout,
        peili.routers.dns,
        peili.routers.file,
        peili.routers.mdns,
        peili.routers.talos,
        peili.adapters.containerd,
        peili.adapters.k3s,
        peili.adapters.talos,
    ],
    ids=lambda module: module.__name__,
)
def test_every_public_name_is_on_it(module: ModuleType) -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    part = text.partition(f"\n## `{module.__name__}`\n")[2].partition("\n## ")[0]
    for name in module.__all__:
        assert f"\n#### `{name}`\n" in part, name
