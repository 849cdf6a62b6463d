"""Directories as values: made from a mapping, and read back whole."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

Tree: TypeAlias = Mapping[str, bytes | str | None]
"""Paths with their contents: a string is where a symbolic link leads, None an empty directory."""

Snapshot: TypeAlias = Mapping[str, tuple[int, int, int, bytes | str | None]]


def make(root: Path, tree: Tree) -> None:
    """Make `root` with `tree` in it."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)


def snapshot(root: Path) -> Snapshot:
    """All that is below `root`, and `root`: kind and mode, owner, content."""
    paths = sorted((root, *root.rglob("*"))) if root.exists() else []
    return {str(path.relative_to(root)): _seen(path) for path in paths}


def _seen(path: Path) -> tuple[int, int, int, bytes | str | None]:
    known = path.lstat()
    content: bytes | str | None = None
    if stat.S_ISLNK(known.st_mode):
        content = str(path.readlink())
    elif stat.S_ISREG(known.st_mode):
        content = path.read_bytes()
    return known.st_mode, known.st_uid, known.st_gid, content
