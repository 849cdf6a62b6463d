"""Content that is one regular file which still grows, until its writer moves it to another path."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from typing_extensions import override

from peili.mirror.content.files import FileContent
from peili.mirror.errors import Aborted

POLL_INTERVAL = 0.025
"""Seconds between two checks of a file while a reader waits. Runtimes write in pieces of about 1 MiB."""


class GrowingFileContent(FileContent):
    """A file to which another program appends until the content is whole, and which it then moves to its final path.

    The file is read by its descriptor, so the move does not disturb. If the file gets shorter, or is removed before it
    is at its final path, `Aborted` is raised. If its writer truncates it and writes more than the old length between
    two checks, this goes unnoticed. Only a reader of all bytes can verify the digest.

    Args:
        fd: A descriptor of the file. This object owns it.
        final_path: The path of the file when it is complete.
        size: The size of the complete content in bytes, if known.
        is_given_up: Returns whether the writer has ended without moving the file. A wait for more bytes then raises
            `Aborted`. By default it is not known.
    """

    def __init__(
        self, fd: int, final_path: Path, size: int | None, *, is_given_up: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__(fd)
        self._growing_fd = fd
        self._final_path = final_path
        self._is_given_up = is_given_up
        self.size = size
        self.complete = False

    @override
    async def wait(self, past: int) -> int:
        while not self.complete:
            self._refresh()
            if self.available > past:
                break
            if not self.complete and self._is_given_up():
                raise Aborted("the unfinished file was given up by its writer")
            await asyncio.sleep(POLL_INTERVAL)
        return self.available

    @override
    def check_unchanged(self, read_count: int) -> None:
        if not read_count or os.fstat(self._growing_fd).st_size < self.available:
            raise Aborted("the unfinished file was shortened or discarded")

    def _refresh(self) -> None:
        if self.fileno() is None:
            raise ValueError("the content is closed")
        is_complete = self._is_at_final_path()  # before the size is read: a complete file does not grow
        status = os.fstat(self._growing_fd)
        if status.st_size < self.available:
            raise Aborted("the unfinished file was shortened; its content is fetched again")
        if not is_complete and not status.st_nlink:
            raise Aborted("the unfinished file was removed")
        self.available = status.st_size
        if is_complete:
            self.size, self.complete = status.st_size, True

    def _is_at_final_path(self) -> bool:
        try:
            return os.path.samestat(self._final_path.stat(), os.fstat(self._growing_fd))
        except OSError:
            return False
