"""Free ports for servers that can't listen on port 0."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

_RANGE = range(10_000, 32_000)
"""Ports below Linux's ephemeral range, so that the kernel does not assign one to another socket before it is used."""


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return ports of `host` on which nothing listens at this moment.

    Raises:
        OSError: There are not enough free ports.
    """
    ports: list[int] = []
    for port in random.sample(_RANGE, 1000):
        if len(ports) == count:
            return ports
        with suppress(OSError), socket.create_server((host, port)):
            ports.append(port)
    raise OSError("no ports are free")


def free_port(host: str = "127.0.0.1") -> int:
    """Return one port of `host` on which nothing listens at this moment. Raises OSError if there is none."""
    return free_ports(1, host)[0]
