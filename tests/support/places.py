"""Directories for what may not be anywhere, whatever TMPDIR says.

The path of a unix socket may have 107 bytes, and a test that becomes another user has to find its files.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

_PLAIN = re.compile(r"/[A-Za-z0-9/._-]{1,39}")
"""Short, and of characters that need no quotes in any file that names it."""


def short_parent() -> Path:
    """The directory for temporary files where its path will do, else another one that every system has."""
    return _first(_is_plain)


@contextmanager
def short_directory() -> Generator[Path]:
    """A new directory whose path is short."""
    with tempfile.TemporaryDirectory(prefix="peili-", dir=short_parent(), ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextmanager
def open_directory() -> Generator[Path]:
    """As `short_directory`, one that every user can enter and read. pytest's own are closed to others."""
    parent = _first(lambda each: _is_plain(each) and _lets_all_in(each))
    with tempfile.TemporaryDirectory(prefix="peili-", dir=parent, ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def _first(will_do: Callable[[Path], bool]) -> Path:
    for each in map(Path, (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")):
        if os.access(each, os.W_OK | os.X_OK) and will_do(each):
            return each
    raise OSError("no directory for temporary files will do; set TMPDIR to one that is short, and open to all")


def _is_plain(directory: Path) -> bool:
    return _PLAIN.fullmatch(str(directory)) is not None


def _lets_all_in(directory: Path) -> bool:
    return all(each.stat().st_mode & stat.S_IXOTH for each in (directory, *directory.parents))
