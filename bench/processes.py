"""Starting the programs that are measured, each a process of its own on loopback, and ending them."""

from __future__ import annotations

import random
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.lab.processes import CommandFailed, Process, wait_for


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on now; all of them different.

    Below those that Linux gives to clients: one of these might be taken before it is listened on.
    """
    ports: list[int] = []
    for port in random.sample(range(10_000, 32_000), 1000):
        if len(ports) == count:
            return ports
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
    raise OSError("no ports are free")


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
    if not process.running:
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
