"""Hashes the files of an OCI layout, each once for as long as it stays as it is. A layout's files may be anything."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from peili.mirror import Digest, NotFound, StoreUnavailable
from peili.mirror.limits import MIB
from peili.stores.oci_layout.files import open_blob

_AT_ONCE = 2  # files hashed at the same time, each in a thread
_REMEMBERED = 65_536  # files that are known to be right


class FileStamp(NamedTuple):
    """Differs once a file has changed."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Starter(Protocol):
    """Starts a task that is cancelled when the store is left."""

    def __call__(self, coroutine: Coroutine[Any, Any, None], /) -> asyncio.Task[None]: ...


def stamp_of(fd: int) -> FileStamp:
    """The stamp of an open file."""
    status = os.fstat(fd)
    return FileStamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def current_stamp(path: Path, digest: Digest) -> FileStamp | None:
    """The stamp of the blob's file now; None where there is none. Raises StoreUnavailable. Blocks."""
    try:
        fd = open_blob(path, digest)
    except NotFound:
        return None
    try:
        return stamp_of(fd)
    finally:
        os.close(fd)


class Verifier:
    """Tells which files of the layout at `path` have the content that their name says. For use on one event loop.

    Everybody who asks about a file while it is hashed waits for the same hashing. It goes on when they stop waiting, so
    that a large file is known the next time, and ends when the store is left.
    """

    def __init__(self, path: Path, start: Starter) -> None:
        self._path = path
        self._start = start
        self._right: OrderedDict[Digest, FileStamp] = OrderedDict()
        self._hashing: dict[tuple[Digest, FileStamp], asyncio.Future[bool | None]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def is_right(self, digest: Digest, stamp: FileStamp) -> bool:
        """Whether the file was hashed as it is, and is right."""
        return self._right.get(digest) == stamp

    def begin(self, digest: Digest, stamp: FileStamp) -> asyncio.Future[bool | None]:
        """Hash the file, unless that is done already: whether it is right, None where it changed meanwhile.

        Await it shielded. Raises StoreUnavailable where the file can't be read, or the store is left.
        """
        key = (digest, stamp)
        answer = self._hashing.get(key)
        if answer is None:
            answer = self._hashing[key] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(_retrieved)
            self._start(self._hash(digest, stamp, answer)).add_done_callback(lambda _: self._ended(key))
        return answer

    async def _hash(self, digest: Digest, stamp: FileStamp, answer: asyncio.Future[bool | None]) -> None:
        stop = threading.Event()
        try:
            async with self._slots:
                right = await asyncio.to_thread(_is_right, self._path, digest, stamp, stop)
            if right:
                self._right[digest] = stamp
                self._right.move_to_end(digest)
                if len(self._right) > _REMEMBERED:
                    self._right.popitem(last=False)
            answer.set_result(right)
        except (NotFound, OSError) as error:
            answer.set_exception(StoreUnavailable(f"{self._path}: {digest}: {error}"))
        except StoreUnavailable as error:
            answer.set_exception(error)
        finally:
            stop.set()

    def _ended(self, key: tuple[Digest, FileStamp]) -> None:
        """A task that is cancelled may end before it has begun, so it can't see to this itself."""
        answer = self._hashing.pop(key)
        if not answer.done():
            answer.set_exception(StoreUnavailable(f"{self._path} is no longer looked at"))


def _retrieved(answer: asyncio.Future[bool | None]) -> None:
    """An error that nobody waits for is no news."""
    if not answer.cancelled():
        answer.exception()


def _is_right(path: Path, digest: Digest, stamp: FileStamp, stop: threading.Event) -> bool | None:
    with os.fdopen(open_blob(path, digest), "rb", buffering=0) as file:
        if stamp_of(file.fileno()) != stamp:
            return None
        hashed, buffer = hashlib.new(digest.algorithm), bytearray(MIB)
        while read := file.readinto(buffer):
            if stop.is_set():
                return None
            hashed.update(memoryview(buffer)[:read])
        return None if stamp_of(file.fileno()) != stamp else hashed.hexdigest() == digest.encoded
