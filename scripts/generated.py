"""The command line of the scripts that write a generated file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def write_or_check(file: Path, text: Callable[[], str], description: str | None) -> int:
    """Write what `text` returns into `file`. With ``--check``, compare only. Returns the exit code.

    Args:
        file: The generated file.
        text: Returns what belongs in it.
        description: The docstring of the script, whose first line is the description for ``--help``.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    check: bool = parser.parse_args().check
    new = text()
    if not check:
        file.write_text(new, encoding="utf-8")
    elif not file.exists() or file.read_text(encoding="utf-8") != new:
        print(f"{file.relative_to(ROOT)} is out of date; run: make docs", file=sys.stderr)
        return 1
    return 0
