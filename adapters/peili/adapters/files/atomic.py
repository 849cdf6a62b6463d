"""Reads, replaces and removes files. Replacing is atomic: at each moment a file is there whole or not at all.

Only regular files count. A symbolic link may lead to a device: people switch a file off with a link to ``/dev/null``.
To replace that device would harm every program of the host. To read from another one, or from a FIFO, may never end.

New content is written next to its final place, under a hidden name that no program reads, and then renamed. An
interrupted run may leave such hidden files behind; `remove_leftovers` removes them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_SUFFIX = ".peili~"
LOCK_TIMEOUT = 10.0
"""Seconds to wait for another run that holds the lock."""
_LOCK_INTERVAL = 0.05
LONGEST = 1 << 20
"""The most bytes of a file that a person writes for a container runtime."""


def resolve_links(path: Path) -> Path:
    """Follow the symbolic links of `path`. A loop of links stays as it is."""
    return Path(os.path.realpath(path))


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}{_SUFFIX}")


class UnusualFile(OSError):
    """Another program may read the file, but peili does not: it is no regular file, or has too many bytes."""


def read(file: Path, longest: int = LONGEST) -> bytes:
    """Return the content of a regular file, without waiting for another program. Symbolic links are followed.

    ``/dev/null`` is empty, as it is for every program.

    Raises:
        UnusualFile: It is another device, a FIFO or a socket, or has more than `longest` bytes.
        OSError: It can't be read, or is a directory.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # else opening a FIFO would wait
    try:
        if not _is_null(status := os.fstat(descriptor)):
            _check_regular(file, status)
        with open(descriptor, "rb", closefd=False) as opened:
            data = opened.read(longest + 1)
    finally:
        os.close(descriptor)
    if len(data) > longest:
        raise UnusualFile(errno.EFBIG, f"more than {longest >> 20} MiB", str(file))
    return data


def _is_null(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == Path(os.devnull).stat().st_rdev


def _check_regular(file: Path, status: os.stat_result) -> None:
    """Check that `status` is that of a regular file. Raises IsADirectoryError, UnusualFile."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(status.st_mode):
        raise UnusualFile(errno.EINVAL, "not a regular file", str(file))


def replace(file: Path, content: bytes) -> None:
    """Replace the content of `file`, or create the file with all missing directories.

    An existing file keeps its mode, owner and extended attributes. Raises OSError, also if there is something else than
    a regular file; then nothing has changed.
    """
    file = resolve_links(file)
    if os.path.lexists(file):
        _check_regular(file, file.lstat())
    top = file  # the topmost path that does not exist yet, or the file itself
    while not top.parent.exists():
        top = top.parent
    temporary = _temporary(top)
    try:
        new_file = temporary / file.relative_to(top)
        directories = [each for each in reversed(new_file.parents) if each.is_relative_to(temporary)]
        for each in directories:
            each.mkdir()
            each.chmod(0o755)  # whatever the umask: containerd may run as another user
        _write(new_file, content, like=file)
        for each in reversed(directories):
            _sync(each)
        temporary.replace(top)
    except BaseException:
        _delete(temporary)
        raise
    _sync(top.parent)


def remove(file: Path, *, created_levels: int) -> None:
    """Remove `file`, and up to ``created_levels - 1`` directories above it that hold nothing else. Raises OSError."""
    file = resolve_links(file)
    top = file
    for _ in range(created_levels - 1):
        if [each.name for each in top.parent.iterdir()] != [top.name]:
            break
        top = top.parent
    if top == file:
        file.unlink()
    else:
        temporary = _temporary(top)
        top.replace(temporary)
        _delete(temporary)
    _sync(top.parent)


def remove_leftovers(roots: Iterable[Path]) -> None:
    """Remove what interrupted runs left in and around these paths. Raises OSError."""
    for root in roots:
        for each in [*_possible_leftovers(root)]:
            _delete(each)


def _possible_leftovers(root: Path) -> Iterator[Path]:
    yield from (_temporary(each) for each in (root, *root.parents[:-1]))
    yield from root.glob(f".*{_SUFFIX}")
    yield from root.glob(f"*/.*{_SUFFIX}")
    yield from (_temporary(resolve_links(file)) for file in root.glob("*/*") if file.is_symlink())


@contextmanager
def lock(roots: Sequence[Path]) -> Generator[None]:
    """Keep other runs away from these paths.

    Raises:
        TimeoutError: Another run held the lock for ten seconds.
        OSError: A directory cannot be opened.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        with ExitStack() as stack:
            directories = _existing_parents(roots)
            for directory in directories:
                _lock(directory, stack, deadline)
            if directories == _existing_parents(roots):  # else a directory appeared or vanished while we waited
                yield
                return


def _existing_parents(roots: Sequence[Path]) -> list[Path]:
    """Return the nearest existing directory above each root, because a root itself may not exist.

    They are sorted, so that two runs cannot block each other.
    """
    return sorted({resolve_links(next(each for each in root.parents if each.is_dir())) for root in roots})


def _lock(directory: Path, stack: ExitStack, deadline: float) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, descriptor)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                reason = f"another process holds the lock on {directory}; try again"
                raise TimeoutError(errno.ETIMEDOUT, reason) from None
            time.sleep(_LOCK_INTERVAL)
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
    wanted, present = source.stat(), os.fstat(descriptor)
    if (wanted.st_uid, wanted.st_gid) != (present.st_uid, present.st_gid):
        os.fchown(descriptor, wanted.st_uid, wanted.st_gid)
    os.fchmod(descriptor, wanted.st_mode & 0o7777)
    for name in os.listxattr(source):  # access control lists, labels
        with suppress(OSError):  # only the kernel may set some of them
            os.setxattr(descriptor, name, os.getxattr(source, name))


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):  # a read-only file system refuses to remove even a file that does not exist
        path.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    """Make a rename survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
