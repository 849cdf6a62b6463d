"""docs/api.md is what the docstrings say, and each public name has one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import peili.mirror
import peili.mirror.testing

ROOT = Path(__file__).parent.parent


def test_the_page_is_what_make_docs_writes() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "api_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_on_it() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in (*peili.mirror.__all__, *peili.mirror.testing.__all__):
        assert f"\n#### `{name}`\n" in text, name
