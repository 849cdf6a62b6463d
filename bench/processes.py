"""Starts the measured programs as processes on loopback, and stops them."""

from __future__ import annotations

import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.lab.processes import CommandFailed, Process, wait_for


@contextmanager
def running(command: Sequence[str], log: Path, ports: Sequence[int] = ()) -> Generator[Process]:
    """Run `command`. It listens on all of `ports` when the context is entered. Its output is appended to `log`.

    Raises:
        CommandFailed: The process ended before it listened.
    """
    process = Process(command, log)
    try:
        for port in ports:
            wait_for(partial(_listens, process, port), f"{command[0]} listens on {port}")
        yield process
    finally:
        process.stop()


def _listens(process: Process, port: int) -> bool:
    if not process.is_running:
        raise CommandFailed(f"{' '.join(process.command)} has ended:\n{process.output()}")
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def silent_port() -> Generator[int]:
    """Yield a port at which connections are accepted but no request is answered, as if the host were dead."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as silent:
        port: int = silent.getsockname()[1]
        yield port
