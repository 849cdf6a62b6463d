"""Looks up the addresses of host names in threads, so that a name server that hangs blocks nothing else."""

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
"""Address families, each with an address to connect to. The first one is the choice of the system."""

_THREADS = 8
"""The number of lookups at the same time. An abandoned lookup keeps its thread until it ends."""


class AddressResolver:
    """Looks up host names for one client. Tasks that ask for the same name share one lookup.

    It has its own threads, because those of the loop's executor belong to the host agent and also read files. Used on
    one event loop. Call `close` at the end.
    """

    def __init__(self) -> None:
        self._threads = DaemonThreads(_THREADS, "peili name")
        self._lookups: dict[tuple[str, int], asyncio.Future[Addresses]] = {}
        self._is_closed = False

    async def addresses(self, host: str, port: int) -> Addresses:
        """Return the addresses of `host`. An IP address is returned as it is.

        Raises:
            OSError: The lookup failed, or the resolver is closed.
            UnicodeError: `host` is not a host name.
        """
        with suppress(ValueError):
            address = ipaddress.ip_address(host)
            if "%" not in host:  # the system has to look up a zone
                return [(socket.AF_INET if address.version == 4 else socket.AF_INET6, (host, port))]
        lookup = self._lookups.get((host, port)) or self._start(host, port)
        await asyncio.wait([lookup])  # if this task is cancelled, the lookup is not: other tasks may wait for it
        if lookup.cancelled():
            raise OSError("the resolver is closed")
        return lookup.result()

    def close(self) -> None:
        """Let all tasks that wait for a lookup fail. A thread ends after its current lookup. Idempotent."""
        self._is_closed = True
        for lookup in list(self._lookups.values()):
            lookup.cancel()

    def _start(self, host: str, port: int) -> asyncio.Future[Addresses]:
        if self._is_closed:
            raise OSError("the resolver is closed")
        lookup = self._threads.run(partial(_look_up, host, port))
        self._lookups[host, port] = lookup
        lookup.add_done_callback(lambda _: self._finish(host, port))
        return lookup

    def _finish(self, host: str, port: int) -> None:
        lookup = self._lookups.pop((host, port))
        if not lookup.cancelled():
            lookup.exception()  # marks it as retrieved, because no task may wait for it any more


def _look_up(host: str, port: int) -> Addresses:
    """Return the addresses of `host`. Blocks."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]
