"""The peili of one host: `peili serve` with a configuration file."""

from __future__ import annotations

import http.client
import json
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tests.lab.fork_server import fork_server
from tests.lab.network import LOCAL_PORT, PEER_PORT, Answer, Node
from tests.lab.processes import CommandFailed, Process, wait_for

Sections = Mapping[str, Mapping[str, Any]]
Launch = Callable[[Node, Sequence[str], Path], Process]
"""Starts the command `peili` on a node, with some arguments and a log."""


def launch_fork(node: Node, arguments: Sequence[str], log: Path) -> Process:
    """Fork a process that has imported the command. A host is then ready 0.8 s of CPU time earlier."""
    child = fork_server().start(arguments, log, namespace=node.namespace)
    return Process(["peili", *arguments], log, child=child)


def launch_program(node: Node, arguments: Sequence[str], log: Path) -> Process:
    """Run the program, as users do."""
    return Process(node.command([sys.executable, "-m", "peili.adapters.standalone", *arguments]), log)


class PeiliProcess:
    """`peili serve` on a node.

    Args:
        node: The node on which the process runs.
        name: The identity of the mirror.
        directory: A new directory for the configuration file and the log.
        launch: How it is started.

    Attributes:
        local: The address of the local door, as `host:port`.
        peer: The address of the peer door, as `host:port`.
        local_tls: With which TLS `request` connects to the local door. By default, the door speaks plain HTTP.
    """

    def __init__(self, node: Node, name: str, directory: Path, *, launch: Launch = launch_fork) -> None:
        self._node = node
        self._launch = launch
        self.configuration = directory / "peili.toml"
        self._log = directory / "peili.log"
        self._process: Process | None = None
        self.identity = name
        self.local_tls: ssl.SSLContext | None = None
        self.local = f"{node.loopback}:{node.port(LOCAL_PORT)}"
        self.peer = f"{node.address}:{node.port(PEER_PORT)}"
        directory.mkdir(parents=True)

    @property
    def process(self) -> Process:
        """The running process."""
        assert self._process is not None, f"peili of {self.identity} is not started"
        return self._process

    def start(self, sections: Sections) -> None:
        """Start peili and wait until it is ready. The argument is that of `launch`."""
        self.launch(sections)
        self.wait_ready()

    def launch(self, sections: Sections) -> None:
        """Start peili, and do not wait until it is ready.

        Args:
            sections: The configuration without `local.listen`, `peer.listen` and `mirror.identity`, which are set here.
                Without `peer`, the peer door is open to everyone.
        """
        local = {"listen": self.local, **sections.get("local", {})}
        mirror = {"identity": self.identity, **sections.get("mirror", {})}
        peer = {"listen": self.peer, **sections.get("peer", {"insecure": True})}
        self.configuration.write_text(_toml({**sections, "local": local, "mirror": mirror, "peer": peer}))
        self._process = self._launch(self._node, ["serve", "--config", str(self.configuration)], self._log)

    def wait_ready(self) -> None:
        """Wait until peili is ready."""
        try:
            wait_for(self.is_ready, f"peili of {self.identity} is ready")
        except AssertionError as error:
            error.add_note(self.log())
            raise

    def terminate(self) -> None:
        """Let peili stop, if it runs, and do not wait until it has."""
        if self._process is not None:
            self._process.terminate()

    def stop(self) -> None:
        """Stop peili with SIGTERM, if it runs."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """Stop peili with SIGKILL, which has the effect of a crash."""
        self.process.kill()
        self._process = None

    def log(self) -> str:
        """Return everything that peili has logged."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def is_ready(self) -> bool:
        """Return whether `/readyz` answers 200.

        Raises:
            CommandFailed: The process has ended.
        """
        if not self.process.is_running:
            raise CommandFailed(f"peili of {self.identity} has ended:\n{self.log()}")
        try:
            return self.request("GET", "/readyz").status == 200
        except (OSError, http.client.HTTPException):
            return False

    def request(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request to the local door from this host.

        Raises:
            OSError: The connection failed.
            http.client.HTTPException: The response is not valid HTTP.
        """
        address, port = self._node.loopback, self._node.port(LOCAL_PORT)
        return self._node.request(method, address, port, path, headers, tls=self.local_tls)

    def has_open(self, file: Path) -> bool:
        """Return whether peili has `file` open at this moment."""
        for descriptor in Path("/proc", str(self.process.pid), "fd").iterdir():
            try:
                if descriptor.readlink() == file:
                    return True
            except FileNotFoundError:  # closed since it was listed
                continue
        return False


def _toml(sections: Sections) -> str:
    """Format sections as TOML."""
    lines: list[str] = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{json.dumps(key)} = {_toml_value(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    """Format a string, number, boolean, a list of these, or a table. JSON is valid TOML for all but tables."""
    if not isinstance(value, Mapping):
        return json.dumps(value)
    table = cast("Mapping[str, Any]", value)
    return "{ " + ", ".join(f"{json.dumps(key)} = {_toml_value(each)}" for key, each in table.items()) + " }"
