"""Opens and lists the files of an OCI image layout. Every function blocks, so the store calls them in threads.

A layout may be hostile. No symbolic link below its own path is followed, and sizes are limited.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Self

from peili.mirror import MAX_MANIFEST, Digest, NotFound, StoreUnavailable, open_regular

ALGORITHMS = ("sha256", "sha512")
MAX_INDEX = 32 << 20
STALE_AGE = 60.0
"""Seconds after which an ingest that nobody writes is given up, until it grows."""
_SIZE = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


class BlobFile(NamedTuple):
    """The size in bytes and the modification time of a blob's file."""

    size: int
    mtime_ns: int


class IngestFile(NamedTuple):
    """The size of a blob that is still being written, and how many of its bytes have arrived."""

    total: int
    available: int


class FileStamp(NamedTuple):
    """A value that differs after a file or a directory has changed."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def from_status(cls, status: os.stat_result) -> Self:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@contextmanager
def open_directory(path: str | Path, parent: int | None = None) -> Generator[int]:
    """Open a directory.

    Args:
        path: The path of the directory, relative to `parent` if that is given.
        parent: A descriptor of another directory. `path` must then not be a symbolic link.

    Yields:
        A descriptor, closed on exit.

    Raises:
        OSError: The directory can't be opened.
    """
    nofollow = 0 if parent is None else os.O_NOFOLLOW
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | nofollow, dir_fd=parent)
    try:
        yield fd
    finally:
        os.close(fd)


def stamp_at(root: int, name: str) -> FileStamp | None:
    """Return the stamp of the file or directory `name` below `root`; None if it does not exist. Raises OSError."""
    try:
        return FileStamp.from_status(os.stat(name, dir_fd=root, follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return None


def stamp_of(fd: int) -> FileStamp:
    """Return the stamp of an open file."""
    return FileStamp.from_status(os.fstat(fd))


def blob_name(digest: Digest) -> str:
    """Return the path of a blob, relative to the layout."""
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def list_blobs(root: int) -> dict[Digest, BlobFile]:
    """Return all regular files below ``blobs`` whose name is a digest. Raises OSError."""
    found: dict[Digest, BlobFile] = {}
    for algorithm in ALGORITHMS:
        try:
            with open_directory("blobs", root) as blobs, open_directory(algorithm, blobs) as directory:
                found.update(_list_directory(algorithm, directory))
        except OSError as error:
            if error.errno not in _MISSING:
                raise
    return found


def is_stale(status: os.stat_result) -> bool:
    """Return whether an ingest's file was given up: it was not written for `STALE_AGE` seconds."""
    return time.time() - status.st_mtime > STALE_AGE


def list_ingests(root: int) -> dict[Digest, IngestFile]:
    """Return the files ``ingest/ALGORITHM/ENCODED.SIZE``: blobs that another program is still writing.

    A file that was not written for `STALE_AGE` seconds is not among them.

    Raises:
        OSError: A directory can't be read.
    """
    found: dict[Digest, IngestFile] = {}
    for algorithm in ALGORITHMS:
        try:
            with open_directory("ingest", root) as ingest, open_directory(algorithm, ingest) as directory:
                for name, status in _regular_files(directory):
                    with suppress(ValueError):  # not the name of an ingest
                        digest, total = _parse_ingest_name(algorithm, name)
                        if status.st_size <= total and not is_stale(status):
                            found[digest] = IngestFile(total, status.st_size)
        except OSError as error:
            if error.errno not in _MISSING:
                raise
    return found


def open_ingest(path: Path, digest: Digest) -> tuple[int, int]:
    """Open the file of a blob that is still being written to the layout at `path`.

    Returns:
        A descriptor, and the size of the whole blob.

    Raises:
        NotFound, StoreUnavailable: It can't be opened, or was not written for `STALE_AGE` seconds.
    """
    try:
        with (
            open_directory(path) as root,
            open_directory("ingest", root) as ingest,
            open_directory(digest.algorithm, ingest) as directory,
        ):
            for name, status in _regular_files(directory):
                with suppress(ValueError):  # not the name of an ingest
                    found, total = _parse_ingest_name(digest.algorithm, name)
                    if found == digest and not is_stale(status):
                        return open_regular(name, dir_fd=directory), total
    except OSError as error:
        if error.errno not in _MISSING:
            raise StoreUnavailable(f"{path}: {error.strerror}") from error
    raise NotFound(f"there is no ingest of {digest}")


def _parse_ingest_name(algorithm: str, name: str) -> tuple[Digest, int]:
    """Return the digest and the size that ``ENCODED.SIZE`` means. Raises ValueError."""
    encoded, _, total = name.partition(".")
    if not _SIZE.fullmatch(total):
        raise ValueError(f"not the name of an ingest: {name}")
    return Digest(f"{algorithm}:{encoded}"), int(total)


def open_blob(path: Path, digest: Digest) -> int:
    """Open a blob of the layout at `path`. Returns a descriptor. Raises NotFound, StoreUnavailable."""
    try:
        with open_directory(path) as root:
            return _open_blob_below(root, digest)
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror}") from error


def blob_stamp(path: Path, digest: Digest) -> FileStamp | None:
    """Return the stamp of a blob of the layout at `path`; None if it does not exist. Raises StoreUnavailable."""
    try:
        fd = open_blob(path, digest)
    except NotFound:
        return None
    try:
        return stamp_of(fd)
    finally:
        os.close(fd)


def read_manifest(path: Path, digest: Digest) -> bytes:
    """Read a manifest of the layout at `path`.

    Raises:
        NotFound, StoreUnavailable: It can't be opened.
        ValueError: It is larger than a manifest may be.
    """
    return _read(open_blob(path, digest), MAX_MANIFEST)


def read_manifest_below(root: int, digest: Digest) -> bytes:
    """Read a manifest as `read_manifest` does, with a descriptor of the layout's directory."""
    return _read(_open_blob_below(root, digest), MAX_MANIFEST)


def read_index(root: int) -> bytes:
    """Read ``index.json``. Raises NotFound and StoreUnavailable, and ValueError if it is larger than 32 MiB."""
    return _read(open_regular("index.json", dir_fd=root), MAX_INDEX)


def _open_blob_below(root: int, digest: Digest) -> int:
    try:
        with open_directory("blobs", root) as blobs, open_directory(digest.algorithm, blobs) as directory:
            return open_regular(digest.encoded, dir_fd=directory)
    except OSError as error:
        if error.errno in _MISSING:
            raise NotFound(f"{digest} is not here") from error
        raise StoreUnavailable(f"{blob_name(digest)}: {error.strerror}") from error


def _list_directory(algorithm: str, directory: int) -> dict[Digest, BlobFile]:
    found: dict[Digest, BlobFile] = {}
    for name, status in _regular_files(directory):
        with suppress(ValueError):  # not a digest
            found[Digest(f"{algorithm}:{name}")] = BlobFile(status.st_size, status.st_mtime_ns)
    return found


def _regular_files(directory: int) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # removed just now
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield entry.name, status


def _read(fd: int, most: int) -> bytes:
    with open(fd, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than {most} bytes")
    return data
