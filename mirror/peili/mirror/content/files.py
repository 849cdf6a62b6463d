"""Content that is one whole regular file. How a store finds the file, and files that still grow, are not its matter."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from typing_extensions import override

from peili.mirror.errors import Aborted, NotFound, StoreUnavailable
from peili.mirror.limits import MIB
from peili.mirror.plugins.content import Content

_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)  # Linux: read only what needs no disk
_NOT_NOW = {errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


def open_regular(path: str | Path, *, dir_fd: int | None = None) -> int:
    """A descriptor of the regular file at `path`, for reading. May block: call it in a thread.

    The last component is not followed where it is a symbolic link. Raises NotFound where there is no regular file,
    StoreUnavailable where it can't be opened.
    """
    try:
        # O_NONBLOCK: a FIFO of that name would be waited for otherwise.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}:
            raise NotFound(f"no regular file at {path}") from error
        raise StoreUnavailable(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotFound(f"no regular file at {path}")
    return fd


def is_cached(fd: int, offset: int) -> bool:
    """Whether the byte at `offset` of a file can be read without its disk; False where that is not known."""
    try:
        return os.preadv(fd, [bytearray(1)], offset, _NOWAIT) == 1 if _NOWAIT else False
    except OSError:
        return False


class FileContent(Content):
    """A whole regular file, read by its descriptor, which it owns: removing or renaming the file does not matter.

    A file that gets shorter or longer while it is open raises Aborted. With `frozen`, so does one whose modification
    time moves, which notices bytes that were overwritten in place; not for owners who set that time themselves, as
    containerd does. Reading does not block the loop. A read that is cancelled ends at once, though its thread can't be
    stopped; the descriptor is closed when that has ended, too.
    """

    def __init__(self, fd: int, *, frozen: bool = False) -> None:
        self._fd = fd
        self._frozen = frozen
        self._opened = os.fstat(fd)
        self._reads = 0
        self._closed = False
        self.size = self._size = self._opened.st_size
        self.available = self._size
        self.complete = True

    @classmethod
    async def open(
        cls, path: str | Path, *, frozen: bool = False, opener: Callable[[str | Path], int] = open_regular
    ) -> FileContent:
        """The file at `path`; raises what `opener` does, which is called in a thread."""
        opening = asyncio.get_running_loop().run_in_executor(None, opener, path)
        try:
            return cls(await asyncio.shield(opening), frozen=frozen)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_result)
            raise

    @override
    def fileno(self) -> int | None:
        return None if self._closed else self._fd

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        if self._closed:
            raise ValueError("the content is closed")
        wanted = min(len(buffer), self._size - offset)
        if wanted <= 0:
            return 0
        self._reads += 1
        try:
            read = self._read_cached(offset, buffer[: min(wanted, MIB)])
            if read is None:
                read = await self._read_in_thread(offset, buffer[: min(wanted, MIB)])
            self._check(read)
        except OSError as error:
            raise StoreUnavailable(f"reading failed: {error.strerror}") from error
        finally:
            self._end_read()
        return read

    @override
    async def wait(self, past: int) -> int:
        return self.available

    @override
    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._close_unused()

    def _read_cached(self, offset: int, buffer: memoryview) -> int | None:
        """Read what the page cache has, which costs no more than a copy; None: it takes a thread."""
        if not _NOWAIT:
            return None
        try:
            return os.preadv(self._fd, [buffer], offset, _NOWAIT)
        except OSError as error:
            if error.errno in _NOT_NOW:
                return None
            raise

    async def _read_in_thread(self, offset: int, buffer: memoryview) -> int:
        # Not straight into `buffer`: when this is cancelled the thread goes on, and the buffer is its owner's again.
        reading = asyncio.get_running_loop().run_in_executor(None, os.pread, self._fd, len(buffer), offset)
        self._reads += 1
        reading.add_done_callback(self._end_thread)
        data = await asyncio.shield(reading)
        buffer[: len(data)] = data
        return len(data)

    def _check(self, read: int) -> None:
        now = os.fstat(self._fd)
        replaced = now.st_size != self._size or (self._frozen and now.st_mtime_ns != self._opened.st_mtime_ns)
        if not read or replaced:
            raise Aborted("the file was changed while it was read")

    def _end_thread(self, reading: asyncio.Future[bytes]) -> None:
        if not reading.cancelled():
            reading.exception()  # where the read was cancelled, nobody else asks for it
        self._end_read()

    def _end_read(self) -> None:
        self._reads -= 1
        self._close_unused()

    def _close_unused(self) -> None:
        """Close once it is closed for its owner and no thread uses the descriptor's number any more."""
        if self._closed and not self._reads and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _close_result(opening: asyncio.Future[int]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())
