"""Hosts as network namespaces: each has an interface on a bridge, and the bridge has a namespace, too, so that nothing
of the machine's own network is touched."""

from __future__ import annotations

import ctypes
import json
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.lab.names import PATTERN, is_stale, new_name
from tests.lab.network import Network, Place
from tests.lab.processes import DEADLINE, CommandFailed, run

_NAMED = Path("/run/netns")
_CLONE_NEWNET = 0x40000000


class Namespace(Place):
    """A host in a network namespace of its own."""

    def command(self, command: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *command]

    def connect(self, address: str, port: int) -> socket.socket:
        made = _socket_in(_NAMED / self.name)
        try:
            made.settimeout(DEADLINE)
            made.connect((address, port))
        except OSError:
            made.close()
            raise
        return made

    def shape(self, rate: str) -> None:
        """Let the host send no more than `rate`, as tc(8) writes it (``80mbit``); a second call replaces the first."""
        options = ["rate", rate, "burst", "64kb", "latency", "200ms"]
        run(["tc", "-n", self.name, "qdisc", "replace", "dev", "eth0", "root", "tbf", *options])

    def held_back(self) -> int:
        """How many packets have waited since then, because the rate was reached."""
        [qdisc] = json.loads(run(["tc", "-n", self.name, "-json", "-statistics", "qdisc", "show", "dev", "eth0"]))
        return int(qdisc["overlimits"])


class Namespaces(Network):
    """A bridge and up to 250 hosts on it, 10.77.0.1 and on. Namespaces are named after this process, so that several
    runs do not meet, and what a killed run has left is removed.
    """

    privileged = True

    def __init__(self) -> None:
        _remove_stale()
        self._prefix = new_name()
        self._names: list[str] = []
        self._bridge = self._add("bridge")
        run(["ip", "-n", self._bridge, "link", "add", "bridge", "type", "bridge"])
        run(["ip", "-n", self._bridge, "link", "set", "bridge", "up"])

    def place(self, name: str) -> Namespace:
        number = len(self._names)
        netns = self._add(name)
        port, address = f"port{number}", f"10.77.0.{number}"
        run(["ip", "-n", self._bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", netns])
        run(["ip", "-n", self._bridge, "link", "set", port, "master", "bridge", "up"])
        run(["ip", "-n", netns, "address", "add", f"{address}/24", "dev", "eth0"])
        run(["ip", "-n", netns, "link", "set", "eth0", "up"])
        run(["ip", "-n", netns, "link", "set", "lo", "up"])
        return Namespace(netns, address, loopback="127.0.0.1", interface=address)

    def close(self) -> None:
        while self._names:
            run(["ip", "netns", "delete", self._names.pop()])

    def _add(self, name: str) -> str:
        netns = f"{self._prefix}-{name}"
        run(["ip", "netns", "add", netns])
        self._names.append(netns)
        return netns


def namespaces_work() -> bool:
    """Whether this process may make them: being root is not enough in a container without the capability."""
    try:
        with Namespaces() as network:
            network.place("probe")
    except CommandFailed:
        return False
    return True


def _remove_stale() -> None:
    """Delete the namespaces of runs that are no more; their processes died with them."""
    for each in _NAMED.glob(PATTERN):
        if is_stale(each.name):
            with suppress(CommandFailed):  # another run was quicker
                run(["ip", "netns", "delete", each.name])


def _socket_in(namespace: Path) -> socket.socket:
    """A socket that lives in `namespace`. Only a thread made for it ever goes there."""
    made: list[socket.socket] = []

    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with namespace.open() as there:
            if libc.setns(there.fileno(), _CLONE_NEWNET) == 0:
                made.append(socket.socket())

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not made:
        raise OSError(f"can't enter {namespace}")
    return made[0]
