"""Where the Talos router reads its text: from a file if it has changed, or from a command that it runs each time."""

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

MAX_TEXT = 16 << 20
"""The longest accepted text in bytes. A member has less than 1 KiB."""
COMMAND_TIMEOUT = 30.0
"""Seconds after which a running command is killed."""
_CLOSE_TIMEOUT = 5.0  # seconds that the pipes of a killed command get to close


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
    """Reads a file that another program writes, in a thread. A file that is being written is read again later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signature: tuple[int, ...] = ()

    @override
    def __str__(self) -> str:
        return str(self._path)

    @override
    async def read(self) -> str | None:
        return await asyncio.to_thread(self._read)

    def _read(self) -> str | None:
        try:
            signature = _signature_of(self._path)  # before the read, so that a write during it counts as a change
            if signature == self._signature:
                return None
            data = _read_file(self._path)
        except OSError as error:
            raise SourceError(error.strerror or str(error)) from error
        self._signature = signature
        return _decode(data)


class CommandSource(MemberSource):
    """Runs a program without a shell and without input, and reads its output.

    If it takes too long, or if `read` is cancelled, the program is killed together with its process group.

    Args:
        command: The program and its arguments.
        timeout: Seconds after which it is killed.
    """

    def __init__(self, command: Sequence[str], *, timeout: float = COMMAND_TIMEOUT) -> None:
        self._command = tuple(command)
        self._timeout = timeout

    @override
    def __str__(self) -> str:
        return self._command[0]

    @override
    async def read(self) -> str:
        process = await self._start()
        try:
            async with asyncio.timeout(self._timeout):
                return await _read_output(process)
        except TimeoutError as error:
            await _kill(process)
            raise SourceError(f"it has not ended after {self._timeout:g} s") from error
        except asyncio.CancelledError:
            await _kill(process)
            raise

    async def _start(self) -> asyncio.subprocess.Process:
        """Start the program. If this is cancelled, kill it as soon as it runs.

        asyncio would kill only the program itself, and then wait for its children, which hold its output open.
        """
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(*self._command, stdin=null, stdout=pipe, stderr=pipe, start_new_session=True)
        )
        try:
            return await asyncio.shield(starting)
        except OSError as error:
            raise SourceError(error.strerror or str(error)) from error
        except asyncio.CancelledError:
            while not starting.done():  # a second cancellation has to wait, too, or the program would go on
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([starting])
            if starting.exception() is None:
                await _kill(starting.result())
            raise


async def _read_output(process: asyncio.subprocess.Process) -> str:
    output, errors = await _read_pipes(process)
    status = await process.wait()
    if status:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise SourceError(f"it ended with {status}{f': {lines[-1][:200]!a}' if lines else ''}")
    return _decode(output)


async def _read_pipes(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """Read both pipes until they are closed. Keeps not much more than `MAX_TEXT` bytes of each."""
    assert process.stdout is not None  # noqa: S101 - they are pipes
    assert process.stderr is not None  # noqa: S101
    async with asyncio.TaskGroup() as tasks:
        output = tasks.create_task(_read_stream(process.stdout))
        errors = tasks.create_task(_read_stream(process.stderr))
    return output.result(), errors.result()


async def _read_stream(stream: asyncio.StreamReader) -> bytes:
    data = bytearray()
    while chunk := await stream.read(1 << 16):
        if len(data) <= MAX_TEXT:
            data += chunk
    return bytes(data)


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the process group, which has every process that still holds the output open."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await _read_pipes(process)  # or else asyncio's ends of the pipes stay open
    await process.wait()


def _signature_of(path: Path) -> tuple[int, ...]:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
        raise SourceError("it is not a file")
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_TEXT + 1)


def _decode(data: bytes) -> str:
    if len(data) > MAX_TEXT:
        raise SourceError(f"more than {MAX_TEXT >> 20} MiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SourceError("it is not UTF-8") from error
