"""Creates a directory from a mapping, and reads a directory into a mapping."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

Tree: TypeAlias = Mapping[str, bytes | str | None]
"""Maps paths to contents: bytes are a file, a string is the target of a symbolic link, None is an empty directory."""

Snapshot: TypeAlias = Mapping[str, tuple[int, int, int, bytes | str | None]]


def make_tree(root: Path, tree: Tree) -> None:
    """Create `root` with `tree` in it."""
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
    """Return the mode, owner, group and content of `root` and everything below it."""
    paths = sorted((root, *root.rglob("*"))) if root.exists() else []
    return {str(path.relative_to(root)): _describe(path) for path in paths}


def _describe(path: Path) -> tuple[int, int, int, bytes | str | None]:
    status = path.lstat()
    content: bytes | str | None = None
    if stat.S_ISLNK(status.st_mode):
        content = str(path.readlink())
    elif stat.S_ISREG(status.st_mode):
        content = path.read_bytes()
    return status.st_mode, status.st_uid, status.st_gid, content
