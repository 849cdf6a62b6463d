"""Notifies of changes in directories, with Linux's inotify(7). Python does not offer it, so the C library is called."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

_MASK = 0x2 | 0x40 | 0x80 | 0x100 | 0x200  # MODIFY, MOVED_FROM, MOVED_TO, CREATE, DELETE
_ONLYDIR = 0x01000000
_READ_SIZE = 65536


class DirectoryNotifier:
    """Reports that something in the watched directories has changed, but not what. For use on one loop.

    Nothing is reported if `is_active` is false: the system has no inotify, or this user has no instance left
    (``fs.inotify.max_user_instances``). Call `close` when done.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._fd = _create_instance()
        self._watches: dict[Path, int] = {}
        if self._fd is not None:
            self._loop.add_reader(self._fd, self._on_events)

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
            return False
        number = cast("int", _LIBC.inotify_add_watch(self._fd, os.fsencode(directory), _MASK | _ONLYDIR))
        if number >= 0:
            self._watches[directory] = number
        return number >= 0

    def unwatch(self, directory: Path) -> None:
        """Stop watching a directory. Does nothing if it is not watched."""
        number = self._watches.pop(directory, None)
        if self._fd is not None and number is not None:
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
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _on_events(self) -> None:
        self._changed.set()
        if self._fd is not None:
            with suppress(BlockingIOError):
                os.read(self._fd, _READ_SIZE)  # not parsed: the caller looks at the directories anyway


def _create_instance() -> int | None:
    create = cast("Callable[[int], int] | None", getattr(_LIBC, "inotify_init1", None))
    fd = -1 if create is None else create(os.O_CLOEXEC | os.O_NONBLOCK)  # the flags of inotify have the same values
    return fd if fd >= 0 else None


_LIBC = ctypes.CDLL(None)
