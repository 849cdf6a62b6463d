"""Runs the command whose output the Talos router reads. A file is read as in `peili.routers.file.source`."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress

from typing_extensions import override

from peili.routers.file.source import MAX_TEXT, MemberSource, SourceError, decode

COMMAND_TIMEOUT = 30.0
"""Seconds after which a running command is killed."""
_CLOSE_TIMEOUT = 5.0  # seconds that the pipes of a killed command get to close


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
    return decode(output)


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
