"""A real containerd as the oracle for the meaning of a hosts directory: the servers record what ctr requests."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.containerd_releases import Release
from tests.differential.recording_servers import RecordedRequest, RecordingServers
from tests.lab.containerd import Containerd
from tests.lab.network import LoopbackNetwork
from tests.lab.processes import DEADLINE, ENVIRONMENT, die_with_parent, run

DIGEST = "sha256:" + "ab" * 32


@dataclass(frozen=True)
class ContainerdOracle:
    """A running containerd. Each of its pulls gets 404 from every host, so it tries all of them.

    Attributes:
        release: The release of containerd.
        version: The version that it prints.
        socket: The path of its socket.
        servers: The servers that record the requests.
    """

    release: Release
    version: str
    socket: Path
    servers: RecordingServers

    def pull(self, folder: Path, registry: str, *, tags: bool) -> Pulls:
        """Pull from `registry` with the hosts.toml files in `folder`, and return the requests.

        Args:
            folder: The hosts directory.
            registry: The registry in the reference.
            tags: Whether to pull a tag, too. A pull by digest is always made.
        """
        content = self._pull(folder, f"{registry}/c@{DIGEST}")
        return Pulls(content, self._pull(folder, f"{registry}/c:v1") if tags else None)

    def _pull(self, folder: Path, reference: str) -> list[RecordedRequest]:
        ctr = [
            self.release.program("ctr"),
            "--address",
            str(self.socket),
            "content",
            "fetch",
            "--hosts-dir",
            str(folder),
        ]
        self.servers.take_requests()  # discard earlier ones
        done = subprocess.run(
            die_with_parent([*ctr, reference]),
            env={**ENVIRONMENT, **self.servers.environment()},
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode != 0, f"{reference} was pulled, although no server has it"
        return [each for each in self.servers.take_requests() if "/manifests/" in each.path]


@dataclass(frozen=True, slots=True)
class Pulls:
    """The requests of a pull by digest, and of a pull by tag if there was one."""

    content: list[RecordedRequest]
    tag: list[RecordedRequest] | None


@contextmanager
def run_oracle(release: Release, directory: Path, servers: RecordingServers) -> Generator[ContainerdOracle]:
    """Run the containerd of `release`. `directory` is a new directory for its files."""
    with LoopbackNetwork() as network:
        containerd = Containerd(network.add_node("oracle"), directory, unpack=False, release=release)
        containerd.start()
        try:
            yield ContainerdOracle(release, _version(release), containerd.socket, servers)
        finally:
            containerd.stop()


def _version(release: Release) -> str:
    words = run([release.program("containerd"), "--version"]).decode().split()
    return words[2]
