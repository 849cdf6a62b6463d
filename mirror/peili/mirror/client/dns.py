"""Addresses of peers' names, looked up where a name server that hangs holds up nothing else."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from contextlib import suppress
from functools import partial
from typing import TypeAlias

from peili.mirror.support.threads import DaemonThreads

SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]  # as `socket` types them
Addresses: TypeAlias = list[tuple[int, SocketAddress]]
"""Address families, each with an address to connect to; the system's choice first."""

_THREADS = 8
"""Look-ups at the same time. One that nobody waits for any more can't be stopped: it keeps its thread to its end."""


class AddressResolver:
    """The look-ups of one client, in threads of their own: those of the loop's executor also read files, and are the
    host's. A name that several wait for is looked up once. Used on one loop; `close` when done.
    """

    def __init__(self) -> None:
        self._threads = DaemonThreads(_THREADS, "peili name")
        self._under_way: dict[tuple[str, int], asyncio.Future[Addresses]] = {}
        self._closed = False

    async def addresses(self, host: str, port: int) -> Addresses:
        """Where `host` is; an IP address is itself. Raises OSError, UnicodeError."""
        with suppress(ValueError):
            address = ipaddress.ip_address(host)
            if "%" not in host:  # a zone is the resolver's to look up
                return [(socket.AF_INET if address.version == 4 else socket.AF_INET6, (host, port))]
        looking = self._under_way.get((host, port)) or self._begin(host, port)
        await asyncio.wait([looking])  # which leaves it alone when this is cancelled: others may wait for it, too
        if looking.cancelled():
            raise OSError("no names are looked up any more")
        return looking.result()

    def close(self) -> None:
        """Let those who wait know. A thread that hangs in a look-up ends after it. Idempotent."""
        self._closed = True
        for looking in list(self._under_way.values()):
            looking.cancel()

    def _begin(self, host: str, port: int) -> asyncio.Future[Addresses]:
        if self._closed:
            raise OSError("no names are looked up any more")
        looking = self._threads.run(partial(_look_up, host, port))
        self._under_way[host, port] = looking
        looking.add_done_callback(lambda _: self._ended(host, port))
        return looking

    def _ended(self, host: str, port: int) -> None:
        looking = self._under_way.pop((host, port))
        if not looking.cancelled():
            looking.exception()  # it may be that nobody waits for it any more


def _look_up(host: str, port: int) -> Addresses:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]
