"""Puts files and directories in place, and takes them away, so that each is there whole or not at all.

What is made or taken away goes by a name next to its own, which nobody looks at; what an interrupted run has left under
such a name, the next one removes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from peili.adapters.files.leftalone import LeftAlone

_ASIDE = ".peili~"
_PATIENCE = 10.0
"""Seconds to wait for another run that is at work in the same place."""
_PAUSE = 0.05


def real(path: Path) -> Path:
    """Where `path` leads to, as far as that can be told: a loop of links stays what it is."""
    return Path(os.path.realpath(path))


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}{_ASIDE}")


def put(file: Path, content: bytes) -> None:
    """Replace the content of `file`, which keeps its mode, owner and attributes, or make it with all its directories.
    Raises OSError; then nothing has changed.
    """
    file = real(file)
    top = file
    while not top.parent.exists():
        top = top.parent
    aside = _aside(top)
    try:
        inside = aside / file.relative_to(top)  # the file itself where its directory is there
        directories = [each for each in reversed(inside.parents) if each.is_relative_to(aside)]
        for each in directories:
            each.mkdir()
            each.chmod(0o755)  # whatever the umask says: containerd may be another user's
        _write(inside, content, like=file)
        for each in reversed(directories):
            _sync(each)
        aside.replace(top)
    except BaseException:
        _remove(aside)
        raise
    _sync(top.parent)


def take_away(file: Path, *, made: int) -> None:
    """Remove `file` and, of the directories above it, up to ``made - 1`` that have nothing else. Raises OSError."""
    file = real(file)
    top = file
    for _ in range(made - 1):
        if [each.name for each in top.parent.iterdir()] != [top.name]:
            break
        top = top.parent
    if top == file:
        file.unlink()
    else:
        aside = _aside(top)
        top.replace(aside)
        _remove(aside)
    _sync(top.parent)


def clean(roots: Iterable[Path]) -> None:
    """Remove what interrupted runs have left. Raises OSError."""
    for root in roots:
        for each in [*_possibly_left(root)]:
            _remove(each)


def _possibly_left(root: Path) -> Iterator[Path]:
    yield from (_aside(each) for each in (root, *root.parents[:-1]))
    yield from root.glob(f".*{_ASIDE}")
    yield from root.glob(f"*/.*{_ASIDE}")
    yield from (_aside(real(file)) for file in root.glob("*/*") if file.is_symlink())


@contextmanager
def locked(roots: Sequence[Path]) -> Generator[None]:
    """Keep other runs out of these folders. Raises LeftAlone after ten seconds, OSError."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        with ExitStack() as stack:
            places = _anchors(roots)
            for place in places:
                _lock(place, stack, deadline)
            if places == _anchors(roots):  # else a directory was made or removed while we waited
                yield
                return


def _anchors(roots: Sequence[Path]) -> list[Path]:
    """What is there already above each root; sorted, so that two runs don't wait for each other."""
    return sorted({real(next(each for each in root.parents if each.is_dir())) for root in roots})


def _lock(place: Path, stack: ExitStack, deadline: float) -> None:
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, descriptor)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LeftAlone(f"somebody else holds the lock on {place}; try again") from None
            time.sleep(_PAUSE)
        else:
            return


def _write(file: Path, content: bytes, *, like: Path) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as output:  # noqa: PTH123 - pathlib opens no descriptors
        if like.exists():
            _copy_rights(like, descriptor)
        else:
            os.fchmod(descriptor, 0o644)
        output.write(content)
        output.flush()
        os.fsync(descriptor)


def _copy_rights(source: Path, descriptor: int) -> None:
    known = source.stat()
    mine = os.fstat(descriptor)
    if (known.st_uid, known.st_gid) != (mine.st_uid, mine.st_gid):
        os.fchown(descriptor, known.st_uid, known.st_gid)
    os.fchmod(descriptor, known.st_mode & 0o7777)
    for name in os.listxattr(source):  # access control lists, labels
        with suppress(OSError):  # some are the kernel's to set
            os.setxattr(descriptor, name, os.getxattr(source, name))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):  # a read-only file system refuses to remove even what is not there
        path.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    """Let a rename outlast a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
