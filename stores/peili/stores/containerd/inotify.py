"""Notifies of changes in directories, with Linux's inotify(7). Python does not offer it, so the C library is called."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import struct
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import cast

from typing_extensions import override

from peili.stores.containerd.inotify_limits import InotifyLimit

_MODIFY, _CLOSE_WRITE, _OPEN, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x8, 0x20, 0x40, 0x80, 0x100, 0x200
_CHANGES = _MODIFY | _CLOSE_WRITE | _OPEN | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_EVENT = struct.Struct("iIII")  # number of the watch, mask, cookie, length of the name that follows
_ONLYDIR, _OVERFLOW, _ISDIR = 0x01000000, 0x4000, 0x40000000
_READ_SIZE = 65536
MAX_ARRIVALS = 1024
"""How many files that have appeared are remembered."""
REOPEN_TIMEOUT = 5.0
"""Seconds after which a writer that has opened a file again has written something."""


class Inotify(ABC):
    """Watches directories. For use on one loop.

    Nothing is reported if `is_active` is false: the system has no inotify, or this user has no instance left. Each call
    of `watch` tries again to get one. Call `close` when done.

    Args:
        mask: The events that are reported.
        reached: Called each time that a limit of the system leaves this user no instance or no watch.
    """

    def __init__(self, mask: int, reached: Callable[[InotifyLimit], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._mask = mask
        self._reached = reached
        self._fd: int | None = None
        self._is_closed = False
        self._watches: dict[Path, int] = {}
        self._directories: dict[int, Path] = {}
        self._open()

    @property
    def is_active(self) -> bool:
        """Whether changes are reported."""
        return self._fd is not None

    def watch(self, directory: Path) -> bool:
        """Watch a directory. Does nothing if it is watched already.

        A watch ends when the directory is removed. The same path must then be watched again.

        Returns:
            Whether the directory is watched. If not, it does not exist, or no watch is left.
        """
        if self._fd is None:
            self._open()
        if self._fd is None:
            return False
        number = cast("int", _LIBC.inotify_add_watch(self._fd, os.fsencode(directory), self._mask | _ONLYDIR))
        if number < 0:
            if ctypes.get_errno() == errno.ENOSPC:
                self._reached(InotifyLimit.WATCHES)
            return False
        if self._watches.get(directory) != number:  # another directory may have been there before
            self.unwatch(directory)
            self._watches[directory] = number
            self._directories[number] = directory
        return True

    def unwatch(self, directory: Path) -> None:
        """Stop watching a directory. Does nothing if it is not watched."""
        number = self._watches.pop(directory, None)
        if number is None or self._directories.get(number) != directory:  # it is watched at another path now
            return
        del self._directories[number]
        if self._fd is not None:
            _LIBC.inotify_rm_watch(self._fd, number)  # fails if the directory was removed, which ended the watch

    async def wait(self, timeout: float) -> None:
        """Wait for a change since the last call, for at most `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            pass
        self._changed.clear()

    def close(self) -> None:
        """End all watches. Idempotent."""
        self._is_closed = True
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _open(self) -> None:
        """Get an instance, if there is one."""
        create = cast("Callable[[int], int] | None", getattr(_LIBC, "inotify_init1", None))
        if create is None or self._is_closed:
            return
        fd = create(os.O_CLOEXEC | os.O_NONBLOCK)  # the flags of inotify have the same values
        if fd >= 0:
            self._fd = fd
            self._loop.add_reader(fd, self._read_events)
        elif ctypes.get_errno() == errno.EMFILE:
            self._reached(InotifyLimit.INSTANCES)

    def _read_events(self) -> None:
        """Read the events that are there."""
        with suppress(BlockingIOError):
            while self._fd is not None:
                for number, mask, name in _parse_events(os.read(self._fd, _READ_SIZE)):
                    directory = self._directories.get(number)
                    self._note(mask, None if directory is None else directory / name)

    @abstractmethod
    def _note(self, mask: int, path: Path | None) -> None:
        """Note an event about a file or directory; None if it is not known which one."""


class DirectoryNotifier(Inotify):
    """Reports that something in the watched directories has changed, but not what.

    It also knows which files were closed by their writer (`closed_since`).
    """

    def __init__(self, reached: Callable[[InotifyLimit], None] = lambda limit: None) -> None:
        super().__init__(_CHANGES, reached)
        self._closed: dict[Path, float] = {}  # when each file was closed by its last writer
        self._reopened: dict[Path, float] = {}  # of these, when each was opened again, perhaps only by a reader
        self._expected = Counter[Path]()  # how often this process is about to open each file

    @override
    def unwatch(self, directory: Path) -> None:
        super().unwatch(directory)
        for files in (self._closed, self._reopened):
            for path in [path for path in files if path.parent == directory]:
                del files[path]
        for path in [path for path in self._expected if path.parent == directory]:
            del self._expected[path]

    def expect_open(self, path: Path) -> None:
        """Note that this process is about to open a file to read it. Call it before each time.

        Otherwise, a file that this process reads again and again would never count as closed.
        """
        if path.parent in self._watches:
            self._expected[path] += 1

    def closed_since(self, path: Path) -> float | None:
        """Return when the last writer of a file in a watched directory closed it.

        Returns:
            The time of the loop's clock. None if it is not known that nobody writes the file: it was not closed since
            its directory is watched, it was written afterwards, or another process opened it in the last
            `REOPEN_TIMEOUT` seconds. The system does not tell whether that was a writer.
        """
        self._read_events()
        reopened = self._reopened.get(path)
        if reopened is not None and self._loop.time() - reopened < REOPEN_TIMEOUT:
            return None
        return self._closed.get(path)

    @override
    def _note(self, mask: int, path: Path | None) -> None:
        if mask & ~(_OPEN | _ISDIR):
            self._changed.set()
        if mask & _OVERFLOW:  # events were lost: no file is known to be closed
            self._closed.clear()
            self._reopened.clear()
        if path is None:
            return
        if mask & _CLOSE_WRITE:
            self._closed[path] = self._loop.time()
        elif mask & _OPEN:
            if self._expected[path]:
                self._expected[path] -= 1
            elif path in self._closed:
                self._reopened[path] = self._loop.time()
            return
        else:
            self._closed.pop(path, None)
        self._reopened.pop(path, None)


class ArrivalNotifier(Inotify):
    """Reports which files and directories appear in the watched directories, or were moved there."""

    def __init__(self, reached: Callable[[InotifyLimit], None] = lambda limit: None) -> None:
        super().__init__(_MOVED_TO | _CREATE, reached)
        self._arrived: dict[Path, None] = {}

    def watch_new(self, directory: Path) -> bool:
        """Watch a directory. Returns whether it was not watched before, so that what is in it was not reported."""
        before = self._watches.get(directory)
        return self.watch(directory) and self._watches[directory] != before

    def take(self) -> list[Path]:
        """Return what has appeared since the last call, at most `MAX_ARRIVALS`, the oldest first."""
        arrived, self._arrived = [*self._arrived], {}
        return arrived

    @override
    def _note(self, mask: int, path: Path | None) -> None:
        self._changed.set()
        if path is not None and len(self._arrived) < MAX_ARRIVALS:
            self._arrived[path] = None


def _parse_events(data: bytes) -> Iterator[tuple[int, int, str]]:
    """Yield the number of the watch, the mask and the name of each event."""
    offset = 0
    while offset < len(data):
        number, mask, _, length = _EVENT.unpack_from(data, offset)
        name = data[offset + _EVENT.size : offset + _EVENT.size + length]
        offset += _EVENT.size + length
        yield number, mask, os.fsdecode(name.rstrip(b"\0"))


def reached_limits(directory: Path) -> set[InotifyLimit]:
    """Return the limits because of which this user could not watch a directory now. Call it on a running loop."""
    limits = set[InotifyLimit]()
    with closing(DirectoryNotifier(limits.add)) as notifier:
        notifier.watch(directory)
    return limits


_LIBC = ctypes.CDLL(None, use_errno=True)
