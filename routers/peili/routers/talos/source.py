"""Where the Talos router gets its text: a file that is read when it has changed, or a command that is run each time."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from typing_extensions import override

MOST = 16 << 20
"""Bytes that are read at most; a member has less than one KiB."""

COMMAND_TIMEOUT = 30.0
"""Seconds after which a command that has not ended is killed."""


_FAREWELL = 5.0
"""Seconds that the pipes of a killed command have to close."""


class Unreadable(Exception):
    """There is no text to be had. The message is one line that says why."""


class Source(ABC):
    """Something that has the text. Used by one task; `str` of it names it to a user."""

    @abstractmethod
    async def read(self) -> str | None:
        """The text; None where it has not changed since the last time. Raises Unreadable."""


class FileSource(Source):
    """A file that others write. One that is being written is read again as it changes. Does not block the loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()

    @override
    def __str__(self) -> str:
        return str(self._path)

    @override
    async def read(self) -> str | None:
        return await asyncio.to_thread(self._read)

    def _read(self) -> str | None:
        try:
            # Before reading: what is written meanwhile is then seen as a change.
            seen = _signature(self._path)
            if seen == self._seen:
                return None
            data = _head(self._path)
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error
        self._seen = seen
        return _text(data)


class CommandSource(Source):
    """A program and its arguments, without a shell, without input. It is killed, with what it started in its process
    group, when it takes too long or the reader is cancelled.
    """

    def __init__(self, command: Sequence[str], *, timeout: float = COMMAND_TIMEOUT) -> None:
        self._command = tuple(command)
        self._timeout = timeout

    @override
    def __str__(self) -> str:
        return self._command[0]

    @override
    async def read(self) -> str:
        process = await self._started()
        try:
            async with asyncio.timeout(self._timeout):
                return await _output(process)
        except TimeoutError as error:
            await _kill(process)
            raise Unreadable(f"it has not ended after {self._timeout:g} s") from error
        except asyncio.CancelledError:
            await _kill(process)
            raise

    async def _started(self) -> asyncio.subprocess.Process:
        """Run it. Cancelled meanwhile, it is killed once it runs: asyncio would kill it alone, and then wait for its
        children, which have its output open.
        """
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        running = asyncio.create_subprocess_exec(
            *self._command, stdin=null, stdout=pipe, stderr=pipe, start_new_session=True
        )
        starting = asyncio.ensure_future(running)
        try:
            return await asyncio.shield(starting)
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error
        except asyncio.CancelledError:
            while not starting.done():  # soon: a second cancellation has to wait, too, or nobody would kill it
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([starting])
            if starting.exception() is None:
                await _kill(starting.result())
            raise


async def _output(process: asyncio.subprocess.Process) -> str:
    output, errors = await _until_closed(process)
    status = await process.wait()
    if status:
        said = errors.decode(errors="replace").strip().splitlines()
        raise Unreadable(f"it ended with {status}{f': {said[-1][:200]!a}' if said else ''}")
    return _text(output)


async def _until_closed(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """All that it writes, of which no more is kept than can be used."""
    assert process.stdout is not None  # noqa: S101 - they are pipes
    assert process.stderr is not None  # noqa: S101
    async with asyncio.TaskGroup() as tasks:
        output = tasks.create_task(_all(process.stdout))
        errors = tasks.create_task(_all(process.stderr))
    return output.result(), errors.result()


async def _all(stream: asyncio.StreamReader) -> bytes:
    data = bytearray()
    while chunk := await stream.read(1 << 16):
        if len(data) <= MOST:
            data += chunk
    return bytes(data)


async def _kill(process: asyncio.subprocess.Process) -> None:
    """End it and what it left behind: whoever still has its output open is in its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(_FAREWELL):
            await _until_closed(process)  # else asyncio's ends of the pipes stay open
    await process.wait()


def _signature(path: Path) -> tuple[int, ...]:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for whoever writes into it
        raise Unreadable("it is not a file")
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST + 1)


def _text(data: bytes) -> str:
    if len(data) > MOST:
        raise Unreadable(f"more than {MOST >> 20} MiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Unreadable("it is not UTF-8") from error
