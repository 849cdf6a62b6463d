"""Starting the programs that are measured, each a process of its own on loopback, and ending them."""

from __future__ import annotations

import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.lab.processes import CommandFailed, Process, wait_for


@contextmanager
def running(command: Sequence[str], log: Path, ports: Sequence[int] = ()) -> Generator[Process]:
    """`command` while it is needed, listening on all of `ports`. Its output is added to `log`. Raises CommandFailed."""
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
    """A port whose host is dead without a word: connections are made, and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as silent:
        port: int = silent.getsockname()[1]
        yield port
