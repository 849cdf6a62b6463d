"""Where the laboratory's hosts live: each in a network namespace of its own, or, where that is not allowed, each on an
address of its own on loopback. What runs on the hosts is not known here."""

from __future__ import annotations

import http.client
import itertools
import os
import random
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.lab.processes import DEADLINE

REGISTRY_PORT, LOCAL_PORT, PEER_PORT = USUAL_PORTS = (5000, 5050, 5051)

_hosts = itertools.count()  # on loopback, over all of this process's laboratories


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, its body read."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Place(ABC):
    """Where one host lives: `address` is how others reach it, `loopback` how it reaches itself, and `interface` is
    the address that the network interface between them bears.
    """

    name: str
    address: str
    loopback: str
    interface: str
    shift: int = 0

    def port(self, usual: int) -> int:
        """Where a service that usually listens on `usual` does so here."""
        return usual + self.shift

    @abstractmethod
    def command(self, command: Sequence[str]) -> list[str]:
        """`command`, to be run there."""

    @abstractmethod
    def connect(self, address: str, port: int) -> socket.socket:
        """A TCP connection made from there. Raises OSError."""

    def ask(
        self,
        method: str,
        address: str,
        port: int,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> Answer:
        """The answer to an HTTP request made from there. Raises OSError, http.client.HTTPException."""
        connection = http.client.HTTPConnection(address, port)
        plain = self.connect(address, port)
        connection.sock = plain if tls is None else tls.wrap_socket(plain, server_hostname=address)
        try:
            connection.request(method, path, headers=dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()


class Network(ABC):
    """Places that reach each other. `privileged` says whether what runs there may mount, and so unpack images."""

    privileged: bool

    @abstractmethod
    def place(self, name: str) -> Place:
        """A new place, which lasts until `close`."""

    @abstractmethod
    def close(self) -> None:
        """Remove what was made. Processes there must have ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LoopbackPlace(Place):
    """An address in 127.0.0.0/8, all of which Linux takes for this machine."""

    def command(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def connect(self, address: str, port: int) -> socket.socket:
        return socket.create_connection((address, port), timeout=DEADLINE)


class Loopback(Network):
    """Hosts on loopback, in a /24 that is this process's own, so that they can have the same ports; not the usual
    ones, on all addresses of which something of this machine's may listen.
    """

    privileged = False

    def __init__(self) -> None:
        self._shift = _free_shift()

    def place(self, name: str) -> Place:
        high, low = divmod(os.getpid(), 250)
        address = f"127.{1 + high % 250}.{low}.{1 + next(_hosts) % 250}"
        return LoopbackPlace(name, address, loopback=address, interface="127.0.0.1", shift=self._shift)

    def close(self) -> None:
        """There is nothing to remove."""


def _free_shift() -> int:
    """How far all `USUAL_PORTS` can be moved so that nothing listens there. Below what Linux gives to clients."""
    for shift in random.sample(range(5_000, 25_000, 100), 50):
        try:
            for usual in USUAL_PORTS:
                with socket.create_server(("", usual + shift)):
                    pass
        except OSError:
            continue
        return shift
    raise OSError("no ports are free")
