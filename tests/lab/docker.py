"""A Docker daemon on a node, with its own state and a mirror of Docker Hub."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.network import Node
from tests.lab.processes import CommandFailed, Process, run, wait_for


class Docker:
    """`dockerd` on `node`, with its files below `directory`. It runs while it is entered.

    Args:
        node: The node, which has a network namespace.
        directory: A new directory with a short path.
        mirror: The URL of the mirror of Docker Hub.
    """

    def __init__(self, node: Node, directory: Path, mirror: str) -> None:
        directory.mkdir()
        self._log = directory / "docker.log"
        self._socket = f"unix://{directory}/docker.sock"
        # Not `ip netns exec`: it mounts its own /sys, without control groups.
        self._enter = ["nsenter", f"--net=/run/netns/{node.name}"]
        self._configuration = directory / "daemon.json"
        self._configuration.write_text(
            json.dumps(
                {
                    "registry-mirrors": [mirror],
                    "hosts": [self._socket],
                    "data-root": str(directory / "data"),
                    "exec-root": str(directory / "exec"),
                    "pidfile": str(directory / "docker.pid"),
                    "storage-driver": "vfs",
                    "bridge": "none",
                    "iptables": False,
                    "ip6tables": False,
                }
            )
        )

    def __enter__(self) -> Self:
        command = [*self._enter, "/usr/sbin/dockerd", "--config-file", str(self._configuration)]
        self._process = Process(command, self._log)
        try:
            wait_for(self._answers, "dockerd answers", pause=0.1)
        except AssertionError as error:
            error.add_note(self._process.output())
            self._process.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stop()

    def run(self, *arguments: str, buildkit: bool = False) -> str:
        """Run the command `docker`, and return its output. Raises CommandFailed."""
        # Debian's client, not a newer one, which may need more than this daemon has.
        settings = ["env", f"DOCKER_BUILDKIT={int(buildkit)}"]
        return run([*settings, "/usr/bin/docker", "--host", self._socket, *arguments]).decode()

    def _answers(self) -> bool:
        assert self._process.is_running, "dockerd has ended"
        try:
            self.run("version")
        except CommandFailed:
            return False
        return True
