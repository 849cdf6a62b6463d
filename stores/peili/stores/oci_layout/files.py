"""Opens and lists the files of an OCI image layout. No symbolic link below the layout's own path is followed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from peili.mirror import Digest, NotFound, StoreUnavailable, open_regular
from peili.mirror.limits import MIB

ALGORITHMS = ("sha256", "sha512")
MAX_MANIFEST = 4 * MIB
MAX_INDEX = 32 * MIB


class BlobFile(NamedTuple):
    """What can be seen of a file from outside."""

    size: int
    mtime_ns: int


class Stamp(NamedTuple):
    """Differs once a file or a directory has changed."""

    inode: int
    size: int
    mtime_ns: int


@contextmanager
def directory(path: str | Path, parent: int | None = None) -> Generator[int]:
    """A descriptor of the directory; below a `parent` it may not be a symbolic link. Raises OSError."""
    nofollow = 0 if parent is None else os.O_NOFOLLOW
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | nofollow, dir_fd=parent)
    try:
        yield fd
    finally:
        os.close(fd)


def stamp(root: int, name: str) -> Stamp | None:
    """The stamp of what is called `name` below `root`; None where there is nothing."""
    try:
        status = os.stat(name, dir_fd=root, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


def blob_name(digest: Digest) -> str:
    """The path of a blob below the layout's."""
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def blob_files(root: int) -> dict[Digest, BlobFile]:
    """All regular files below ``blobs`` whose name makes a digest. Raises OSError."""
    found: dict[Digest, BlobFile] = {}
    for algorithm in ALGORITHMS:
        try:
            with directory("blobs", root) as blobs, directory(algorithm, blobs) as folder:
                found.update(_listed(algorithm, folder))
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
    return found


def open_blob(path: Path, digest: Digest) -> int:
    """A descriptor of a blob of the layout at `path`. Raises NotFound, StoreUnavailable."""
    try:
        with directory(path) as root:
            return _open_blob(root, digest)
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror}") from error


def read_blob_at(path: Path, digest: Digest) -> bytes:
    """A blob of the layout at `path`, whole. Raises NotFound, StoreUnavailable; ValueError where it is larger."""
    return _read(open_blob(path, digest), MAX_MANIFEST)


def read_blob(root: int, digest: Digest) -> bytes:
    """A blob of manifest size, whole. Raises NotFound, StoreUnavailable; ValueError where it is larger."""
    return _read(_open_blob(root, digest), MAX_MANIFEST)


def read_index(root: int) -> bytes:
    """``index.json``, whole. Raises NotFound, StoreUnavailable; ValueError where it is unreasonably large."""
    return _read(open_regular("index.json", dir_fd=root), MAX_INDEX)


_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


def _open_blob(root: int, digest: Digest) -> int:
    try:
        with directory("blobs", root) as blobs, directory(digest.algorithm, blobs) as folder:
            return open_regular(digest.encoded, dir_fd=folder)
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise NotFound(f"{digest} is not here") from error
        raise StoreUnavailable(f"{blob_name(digest)}: {error.strerror}") from error


def _listed(algorithm: str, folder: int) -> dict[Digest, BlobFile]:
    found: dict[Digest, BlobFile] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(ValueError, FileNotFoundError):  # not a digest; removed just now
                digest = Digest(f"{algorithm}:{entry.name}")
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    found[digest] = BlobFile(status.st_size, status.st_mtime_ns)
    return found


def _read(fd: int, most: int) -> bytes:
    with open(fd, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than {most} bytes")
    return data
