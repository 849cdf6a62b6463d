"""The network of the laboratory: nodes that reach each other by TCP.

`NamespaceNetwork` (namespaces.py) gives each node a network namespace. `LoopbackNetwork` needs no privileges: each node
has its own address on loopback. This module does not know what runs on the nodes.
"""

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
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.processes import DEADLINE

REGISTRY_PORT, LOCAL_PORT, PEER_PORT, TOKEN_PORT = USUAL_PORTS = (5000, 5050, 5051, 5001)

_node_numbers = itertools.count()  # of the loopback nodes of all laboratories in this process


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response with its whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Node(ABC):
    """One machine of the network.

    Attributes:
        name: The name of the node, for messages and directories.
        address: The IP address under which other nodes reach this one.
        loopback: The IP address under which the node reaches itself.
        interface: The IP address of the network interface between the nodes.
        port_offset: The number that `port` adds to each usual port.
    """

    name: str
    address: str
    loopback: str
    interface: str
    port_offset: int = 0

    @property
    def namespace(self) -> Path | None:
        """The file of the node's network namespace; None if the node is on loopback."""
        return None

    def port(self, usual: int) -> int:
        """Return the port on which this node runs the service whose usual port is `usual`."""
        return usual + self.port_offset

    @abstractmethod
    def command(self, command: Sequence[str]) -> list[str]:
        """Return `command`, extended so that it runs on this node."""

    @abstractmethod
    def connect(self, address: str, port: int) -> socket.socket:
        """Open a TCP connection from this node.

        Raises:
            OSError: The connection failed.
        """

    @abstractmethod
    def listen(self, port: int) -> socket.socket:
        """Open a socket that listens on the node's address.

        Raises:
            OSError: The port is in use.
        """

    def request(
        self,
        method: str,
        address: str,
        port: int,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> Answer:
        """Send an HTTP request from this node and read the whole response.

        Raises:
            OSError: The connection failed.
            http.client.HTTPException: The response is not valid HTTP.
        """
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
    """Nodes that reach each other.

    Attributes:
        privileged: Whether processes on the nodes may mount file systems, and therefore unpack images.
    """

    privileged: bool

    @abstractmethod
    def add_node(self, name: str) -> Node:
        """Create a node. It exists until `close`."""

    @abstractmethod
    def close(self) -> None:
        """Remove all nodes. The processes on them must have ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LoopbackNode(Node):
    """A node with an address in 127.0.0.0/8. Linux accepts connections to each address in that network."""

    def command(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def connect(self, address: str, port: int) -> socket.socket:
        return socket.create_connection((address, port), timeout=DEADLINE)

    def listen(self, port: int) -> socket.socket:
        return socket.create_server((self.address, port))


class LoopbackNetwork(Network):
    """Nodes on loopback. Their addresses come from a /24 that depends on the process id.

    All nodes use the same ports. These are not the usual ports, because a service of this machine may listen on a usual
    port on all addresses.
    """

    privileged = False

    def __init__(self) -> None:
        self._port_offset = _free_port_offset()

    def add_node(self, name: str) -> Node:
        high, low = divmod(os.getpid(), 250)
        address = f"127.{1 + high % 250}.{low}.{1 + next(_node_numbers) % 250}"
        return LoopbackNode(name, address, loopback=address, interface="127.0.0.1", port_offset=self._port_offset)

    def close(self) -> None:
        """There is nothing to remove."""


def _free_port_offset() -> int:
    """Return a number such that each usual port plus this number is free, and below the kernel's ephemeral ports."""
    for offset in random.sample(range(5_000, 25_000, 100), 50):
        try:
            for usual in USUAL_PORTS:
                with socket.create_server(("", usual + offset)):
                    pass
        except OSError:
            continue
        return offset
    raise OSError("no ports are free")
