"""Ports for servers that have to be told theirs."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

_RANGE = range(10_000, 32_000)
"""Below those that Linux gives to whoever asks for any: so nobody gets one by chance before it is used."""


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports of `host` that nobody listens on now. Raises OSError where there are none."""
    ports: list[int] = []
    for port in random.sample(_RANGE, 1000):
        if len(ports) == count:
            return ports
        with suppress(OSError), socket.create_server((host, port)):
            ports.append(port)
    raise OSError("no ports are free")


def free_port(host: str = "127.0.0.1") -> int:
    """One of them."""
    return free_ports(1, host)[0]
