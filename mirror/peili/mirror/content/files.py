"""Content that is one whole regular file. How a store finds the file, and files that still grow, are not here."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from typing_extensions import override

from peili.mirror.errors import Aborted, NotFound, StoreUnavailable
from peili.mirror.limits import MIB
from peili.mirror.plugins.content import Content

_T = TypeVar("_T")
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)  # Linux: read only what is in the page cache
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}
_NEEDS_THREAD = {errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


def open_regular(path: str | Path, *, dir_fd: int | None = None) -> int:
    """Open a regular file for reading, and return its descriptor. May block, so call it in a thread.

    Args:
        path: The path. If its last component is a symbolic link, that is not followed.
        dir_fd: The directory that a relative path starts at.

    Raises:
        NotFound: There is no regular file.
        StoreUnavailable: The file can't be opened.
    """
    try:
        # O_NONBLOCK: without it, opening a FIFO would wait.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in _MISSING:
            raise NotFound(f"no regular file at {path}") from error
        raise StoreUnavailable(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotFound(f"no regular file at {path}")
    return fd


def open_below(root: Path, path: str | Path) -> int:
    """Open a regular file below a directory for reading, and return its descriptor. May block.

    Args:
        root: The directory.
        path: The path of the file, relative to `root`. No symbolic link in it is followed, and it must not have ``..``.

    Raises:
        NotFound: There is no regular file.
        StoreUnavailable: The file can't be opened.
    """
    *names, last = Path(path).parts
    if Path(path).is_absolute() or ".." in (*names, last):
        raise NotFound(f"not a path below {root}: {path}")
    try:
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in names:
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
                os.close(directory)
                directory = below
            return open_regular(last, dir_fd=directory)
        finally:
            os.close(directory)
    except OSError as error:
        if error.errno in _MISSING:
            raise NotFound(f"no regular file at {path} below {root}") from error
        raise StoreUnavailable(f"{path}: {error.strerror}") from error


def is_cached(fd: int, offset: int) -> bool:
    """Return whether the byte at `offset` of a file can be read without its disk. False if that is not known."""
    try:
        return os.preadv(fd, [bytearray(1)], offset, _NOWAIT) == 1 if _NOWAIT else False
    except OSError:
        return False


async def open_in_thread(opener: Callable[[], _T], close: Callable[[_T], None]) -> _T:
    """Call `opener` in a thread, and return its result. Its errors are passed on.

    If the caller is cancelled, the thread continues. Its result is then closed, because nothing else owns it.

    Args:
        opener: Opens something, such as a file.
        close: Closes the result of `opener`. Called on the loop.
    """
    opening = asyncio.get_running_loop().run_in_executor(None, opener)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(partial(_close_result, close))
        raise


def _close_result(close: Callable[[_T], None], opening: asyncio.Future[_T]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        close(opening.result())


class FileContent(Content):
    """A whole regular file. It is read by its descriptor, so the file may be removed or renamed meanwhile.

    A file whose size changes while it is open raises Aborted. Reading does not block the loop. A read that is cancelled
    ends at once, but its thread can't be stopped; the descriptor is closed once the thread has ended, too.

    Args:
        fd: The descriptor of the file. The content owns it, and closes it.
        frozen: Also raise Aborted if the modification time changes. This detects bytes that are overwritten in place.
            It is not for stores that set the time themselves, as containerd does.
    """

    def __init__(self, fd: int, *, frozen: bool = False) -> None:
        self._fd = fd
        self._frozen = frozen
        self._stat = os.fstat(fd)
        self._pending_reads = 0
        self._closed = False
        self.size = self._size = self._stat.st_size
        self.available = self._size
        self.complete = True

    @classmethod
    async def open(
        cls, path: str | Path, *, frozen: bool = False, opener: Callable[[str | Path], int] = open_regular
    ) -> FileContent:
        """Open the file at `path`.

        Args:
            path: The path of the file.
            frozen: See the class.
            opener: Opens the file, in a thread, and returns its descriptor. Its errors are passed on.
        """
        return cls(await open_in_thread(partial(opener, path), os.close), frozen=frozen)

    @override
    def fileno(self) -> int | None:
        return None if self._closed else self._fd

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        if self._closed:
            raise ValueError("the content is closed")
        wanted = min(len(buffer), self.available - offset)
        if wanted <= 0:
            return 0
        self._pending_reads += 1
        try:
            read_count = self._read_cached(offset, buffer[: min(wanted, MIB)])
            if read_count is None:
                read_count = await self._read_in_thread(offset, buffer[: min(wanted, MIB)])
            self.check_unchanged(read_count)
        except OSError as error:
            raise StoreUnavailable(f"reading failed: {error.strerror}") from error
        finally:
            self._end_read()
        return read_count

    @override
    async def wait(self, past: int) -> int:
        return self.available

    @override
    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._close_if_unused()

    def _read_cached(self, offset: int, buffer: memoryview) -> int | None:
        """Read what the page cache has, which costs no more than a copy. Return None if it takes a thread."""
        if not _NOWAIT:
            return None
        try:
            return os.preadv(self._fd, [buffer], offset, _NOWAIT)
        except OSError as error:
            if error.errno in _NEEDS_THREAD:
                return None
            raise

    async def _read_in_thread(self, offset: int, buffer: memoryview) -> int:
        # Not directly into `buffer`: if this is cancelled, the thread continues while the owner may use the buffer.
        reading = asyncio.get_running_loop().run_in_executor(None, os.pread, self._fd, len(buffer), offset)
        self._pending_reads += 1
        reading.add_done_callback(self._on_thread_end)
        data = await asyncio.shield(reading)
        buffer[: len(data)] = data
        return len(data)

    def check_unchanged(self, read_count: int) -> None:
        """Check the file after a read of `read_count` bytes. A subclass for a file that grows overrides this.

        Raises:
            Aborted: The file was changed.
        """
        now = os.fstat(self._fd)
        is_changed = now.st_size != self._size or (self._frozen and now.st_mtime_ns != self._stat.st_mtime_ns)
        if not read_count or is_changed:
            raise Aborted("the file was changed while it was read")

    def _on_thread_end(self, reading: asyncio.Future[bytes]) -> None:
        if not reading.cancelled():
            reading.exception()  # if the read was cancelled, nothing else retrieves it
        self._end_read()

    def _end_read(self) -> None:
        self._pending_reads -= 1
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        """Close the descriptor once the owner has closed the content and no thread uses the descriptor any more."""
        if self._closed and not self._pending_reads and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
