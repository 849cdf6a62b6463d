"""A machine for the doctor: a containerd with whatever configuration, in a mount namespace that has an /etc of its own,
so that what containerd does by default can be tried. The truth is told by pulls through Kubernetes' CRI API."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.containerd_releases import Release
from tests.lab import cri
from tests.lab.processes import ENVIRONMENT, CommandFailed, Process, run, wait_for

# /opt and /run are where containerd and its NRI plug-in would leave things of theirs.
_ENTER = """\
mount --make-rprivate / && mount --bind "$0/etc" /etc && mount --bind "$0/opt" /opt && mount --bind "$0/run" /run \
&& exec "$@"
"""


PULLED = "pulled"


@cache
def mounts_work() -> bool:
    """Whether this process may make mount namespaces."""
    command = ["unshare", "--mount", "mount", "--make-rprivate", "/"]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0


class Machine:
    """One with the containerd `release`, kept below `directory`, which has to be short, and ended with it.

    Its /etc is `etc`; with nothing but files in it, and with folders only for containerd and Docker.
    """

    def __init__(self, release: Release, directory: Path) -> None:
        self._release = release
        self._directory = directory
        self._process: Process | None = None
        self.etc = directory / "etc"
        self.socket = directory / "run/c.sock"
        for path in (self.etc / "containerd", self.etc / "docker", directory / "opt", directory / "run"):
            path.mkdir(parents=True)
        for file in Path("/etc").iterdir():
            if file.is_file():
                shutil.copy(file, self.etc)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def log(self) -> str:
        """What containerd has logged."""
        return (self._directory / "log").read_text(errors="replace")

    def complaints(self) -> str:
        """The lines of the log that are more than information."""
        return "\n".join(line for line in self.log.splitlines() if "level=info" not in line)

    def start(self, *arguments: str) -> None:
        """Start containerd with these flags. Raises CommandFailed where it does not start."""
        nodes = ["--root", f"{self._directory}/root", "--state", f"{self._directory}/state"]
        command = ["unshare", "--mount", "sh", "-c", _ENTER, str(self._directory)]
        command += [self._release.program("containerd"), *nodes, "--address", str(self.socket), *arguments]
        self._process = Process(command, self._directory / "log")
        wait_for(self._booted, "containerd has started", pause=0.005)

    def pull(self, name: str) -> str:
        """Pull by the CRI API: `PULLED`, or why not."""
        return wait_for(partial(self._pulled, name), "the CRI plug-in has started") or ""

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """`command` as it runs on this machine."""
        assert self._process is not None
        inside = ["nsenter", "--target", str(self._process.pid), "--mount", *command]
        return subprocess.run(inside, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)

    def digests(self) -> set[str]:
        """All that is in the content store for Kubernetes, whole."""
        return set(self._ctr("content", "ls", "-q").split())

    def collect_garbage(self) -> None:
        """Have containerd drop what nothing refers to; returns when it has."""
        self._ctr("leases", "delete", "--sync", self._ctr("leases", "create").strip())

    def _ctr(self, *arguments: str) -> str:
        command = [self._release.program("ctr"), "--address", str(self.socket), "--namespace", "k8s.io", *arguments]
        return run(command).decode()

    def _booted(self) -> bool:
        assert self._process is not None
        if not self._process.is_running:
            raise CommandFailed(self.log)
        return "containerd successfully booted" in self.log

    def _pulled(self, name: str) -> str | None:
        try:
            cri.pull(self.socket, name)
        except CommandFailed as error:
            return None if "not initialized yet" in str(error) else str(error)
        return PULLED
