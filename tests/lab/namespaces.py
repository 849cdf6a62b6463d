"""Nodes in network namespaces: each node has an interface on a bridge, and the bridge has its own namespace.

The network of the machine itself does not change.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.network import Network, Node
from tests.lab.processes import DEADLINE, CommandFailed, run
from tests.lab.run_names import PATTERN, is_stale, new_name

_NETNS = Path("/run/netns")  # where ip-netns(8) keeps named namespaces
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class NamespaceNode(Node):
    """A node in its own network namespace.

    Attributes:
        bridge: The namespace of the bridge.
        bridge_port: The other end of the node's link, which is a port of the bridge.
    """

    bridge: str = field(kw_only=True)
    bridge_port: str = field(kw_only=True)

    @property
    def namespace(self) -> Path:
        return _NETNS / self.name

    def command(self, command: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *command]

    def connect(self, address: str, port: int) -> socket.socket:
        connection = _create_socket_in(self.namespace)
        try:
            connection.settimeout(DEADLINE)
            connection.connect((address, port))
        except OSError:
            connection.close()
            raise
        return connection

    def listen(self, port: int) -> socket.socket:
        listening = _create_socket_in(self.namespace)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((self.address, port))
            listening.listen()
        except OSError:
            listening.close()
            raise
        return listening

    def limit_rate(self, rate: str) -> None:
        """Limit what the node sends.

        Args:
            rate: The rate in the notation of tc(8), such as ``80mbit``. It replaces the rate of an earlier call.
        """
        _shape(self.name, "eth0", rate)

    def limit_link(self, send: str, receive: str | None = None) -> None:
        """Limit the node's link in both directions.

        Args:
            send: The rate of what the node sends, as for `limit_rate`. It replaces the rate of an earlier call.
            receive: The rate of what it receives. By default, this is `send`.
        """
        _shape(self.name, "eth0", send)
        _shape(self.bridge, self.bridge_port, receive or send)

    def limit_receive_buffers(self, size: int) -> None:
        """Limit how many bytes a TCP connection of the node keeps that its program has not read yet."""
        run(self.command(["sh", "-c", f"echo '4096 131072 {size}' > /proc/sys/net/ipv4/tcp_rmem"]))

    def sent_bytes(self) -> int:
        """Return how many bytes the node has sent so far, with the headers of all layers."""
        return int(run(self.command(["cat", "/sys/class/net/eth0/statistics/tx_bytes"])))

    def delayed_packets(self) -> int:
        """Return how many packets had to wait since the first `limit_rate`, because the node had reached the rate."""
        [qdisc] = json.loads(run(["tc", "-n", self.name, "-json", "-statistics", "qdisc", "show", "dev", "eth0"]))
        return int(qdisc["overlimits"])


class NamespaceNetwork(Network):
    """A bridge and up to 250 nodes with the addresses 10.77.0.1 and up.

    The names of the namespaces contain the process id, so several runs do not disturb each other. The constructor
    removes the namespaces of killed runs.
    """

    privileged = True

    def __init__(self) -> None:
        _remove_stale()
        self._prefix = new_name()
        self._names: list[str] = []
        self._bridge = self._add("bridge")
        run(["ip", "-n", self._bridge, "link", "add", "bridge", "type", "bridge"])
        run(["ip", "-n", self._bridge, "link", "set", "bridge", "up"])

    def add_node(self, name: str) -> NamespaceNode:
        number = len(self._names)
        netns = self._add(name)
        port, address = f"port{number}", f"10.77.0.{number}"
        run(["ip", "-n", self._bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", netns])
        run(["ip", "-n", self._bridge, "link", "set", port, "master", "bridge", "up"])
        run(["ip", "-n", netns, "address", "add", f"{address}/24", "dev", "eth0"])
        run(["ip", "-n", netns, "link", "set", "eth0", "up"])
        run(["ip", "-n", netns, "link", "set", "lo", "up"])
        return NamespaceNode(
            netns, address, loopback="127.0.0.1", interface=address, bridge=self._bridge, bridge_port=port
        )

    def close(self) -> None:
        while self._names:
            run(["ip", "netns", "delete", self._names.pop()])

    def _add(self, name: str) -> str:
        netns = f"{self._prefix}-{name}"
        run(["ip", "netns", "add", netns])
        self._names.append(netns)
        return netns


def _shape(netns: str, device: str, rate: str) -> None:
    """Limit what leaves a device."""
    options = ["rate", rate, "burst", "64kb", "latency", "200ms"]
    run(["tc", "-n", netns, "qdisc", "replace", "dev", device, "root", "tbf", *options])


def namespaces_work() -> bool:
    """Return whether this process may create network namespaces. Root in a container often lacks the capability."""
    try:
        with NamespaceNetwork() as network:
            network.add_node("probe")
    except CommandFailed:
        return False
    return True


def _remove_stale() -> None:
    """Delete the namespaces of runs that have ended. The kernel has already killed their processes."""
    for each in _NETNS.glob(PATTERN):
        if is_stale(each.name):
            with suppress(CommandFailed):  # another run has already deleted it
                run(["ip", "netns", "delete", each.name])


def enter(namespace: Path) -> None:
    """Move the calling thread into a network namespace. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    with namespace.open() as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(namespace))


def _create_socket_in(namespace: Path) -> socket.socket:
    """Create a socket in `namespace`. A thread that exists only for this enters the namespace."""
    made: list[socket.socket] = []

    def make() -> None:
        with suppress(OSError):
            enter(namespace)
            made.append(socket.socket())

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not made:
        raise OSError(f"can't enter {namespace}")
    return made[0]
