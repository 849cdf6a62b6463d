"""Temporary directories with a short path, or with access for all users, independent of TMPDIR.

The path of a unix socket has at most 107 bytes. A test that starts a process of another user needs files that this user
can read. The directories are in memory if there is enough: containerd waits for the disk dozens of times in each pull.
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
"""A short path whose characters need no quotes in a configuration file."""


_IN_MEMORY = Path("/dev/shm")
_ROOM = 6 << 30
"""The bytes that must be free in memory: several times what the tests have there at the same time."""


def short_parent() -> Path:
    """Return a directory in memory, or else the one for temporary files if its path is short, or else another one."""
    return _find_parent(_is_plain)


@contextmanager
def short_directory() -> Generator[Path]:
    """Create a directory with a short path, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="peili-", dir=short_parent(), ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextmanager
def open_directory() -> Generator[Path]:
    """Create a directory as `short_directory` does that every user can read. Only the owner can read pytest's."""
    parent = _find_parent(lambda each: _is_plain(each) and _is_open_to_all(each))
    with tempfile.TemporaryDirectory(prefix="peili-", dir=parent, ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def _find_parent(is_suitable: Callable[[Path], bool]) -> Path:
    usual = map(Path, (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"))
    for each in (*([_IN_MEMORY] if _has_room() else []), *usual):
        if os.access(each, os.W_OK | os.X_OK) and is_suitable(each):
            return each
    raise OSError("no suitable directory for temporary files; set TMPDIR to a short path that all users can enter")


def _is_plain(directory: Path) -> bool:
    return _PLAIN.fullmatch(str(directory)) is not None


def _is_open_to_all(directory: Path) -> bool:
    return all(each.stat().st_mode & stat.S_IXOTH for each in (directory, *directory.parents))


def _has_room() -> bool:
    """Return whether there is enough memory, and programs may run from there."""
    try:
        system = os.statvfs(_IN_MEMORY)
        available = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return False
    room = min(system.f_bavail * system.f_frsize, int(available[1]) << 10 if available else 0)
    return room >= _ROOM and not system.f_flag & os.ST_NOEXEC
