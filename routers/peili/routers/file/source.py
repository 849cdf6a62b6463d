"""Reads a text file that another program writes, whenever it changes. The Talos router uses it too."""

from __future__ import annotations

import asyncio
import stat
from abc import ABC, abstractmethod
from pathlib import Path

from typing_extensions import override

MAX_TEXT = 16 << 20
"""The longest accepted text in bytes. A member has less than 1 KiB."""


class SourceError(Exception):
    """The text can't be read. The message is one line that says why."""


class MemberSource(ABC):
    """Reads the text. For use by one task. ``str(source)`` names it in log lines."""

    @abstractmethod
    async def read(self) -> str | None:
        """Read the text.

        Returns:
            The text; None if it has not changed since the last call.

        Raises:
            SourceError: The text can't be read.
        """


class FileSource(MemberSource):
    """Reads a file in a thread.

    A file that is replaced by another one is read at once. A file that is written in place is read when it has not
    changed between two calls, because its writer may not be done.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_signature: tuple[int, ...] = ()  # of the file that was read last
        self._seen_signature: tuple[int, ...] = ()  # of the file at the last call

    @override
    def __str__(self) -> str:
        return str(self._path)

    @override
    async def read(self) -> str | None:
        return await asyncio.to_thread(self._read)

    def _read(self) -> str | None:
        try:
            signature = _signature_of(self._path)
            before, self._seen_signature = self._seen_signature, signature
            if signature == self._read_signature:
                return None
            is_same_file = signature[:2] == self._read_signature[:2]
            if is_same_file and signature != before:
                return None
            data = read_file(self._path)
            if _signature_of(self._path) != signature:  # it was written meanwhile
                return None
        except OSError as error:
            raise SourceError(error.strerror or str(error)) from error
        self._read_signature = signature
        return decode(data)


def _signature_of(path: Path) -> tuple[int, ...]:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
        raise SourceError("it is not a file")
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_file(path: Path) -> bytes:
    """Return what the file contains, but not more than one byte too much. Raises OSError."""
    with path.open("rb") as file:
        return file.read(MAX_TEXT + 1)


def decode(data: bytes) -> str:
    """Return the text in `data`. Raises SourceError if it is too long or not UTF-8."""
    if len(data) > MAX_TEXT:
        raise SourceError(f"more than {MAX_TEXT >> 20} MiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SourceError("it is not UTF-8") from error
