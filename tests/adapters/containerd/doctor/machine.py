"""A containerd with any configuration, in a mount namespace with its own /etc.

This allows tests of what containerd does by default. Pulls through Kubernetes' CRI API show what it really does.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.containerd_releases import Release
from tests.lab import cri
from tests.lab.processes import ENVIRONMENT, CommandFailed, Process, run, wait_for

# containerd and its NRI plug-in would leave files in /opt and /run.
_ENTER = """\
mount --make-rprivate / && mount --bind "$0/etc" /etc && mount --bind "$0/opt" /opt && mount --bind "$0/run" /run \
&& exec "$@"
"""


PULLED = "pulled"
_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
T = TypeVar("T")


@cache
def mounts_work() -> bool:
    """Return whether this process may create mount namespaces."""
    command = ["unshare", "--mount", "mount", "--make-rprivate", "/"]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0


class Machine:
    """A machine with one release of containerd; a context manager that kills containerd at the end.

    Args:
        release: The release.
        directory: Where the machine keeps its files; its path must be short. The end removes it.

    Attributes:
        etc: The machine's /etc. It has the host's files, and directories only for containerd and Docker.
        socket: containerd's socket.
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
            self._process.kill()  # takes no time, and nothing of the machine is kept
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def log(self) -> str:
        """The log of containerd."""
        return (self._directory / "log").read_text(errors="replace")

    def warnings(self) -> str:
        """Return the lines of the log above the level of information."""
        return "\n".join(line for line in self.log.splitlines() if "level=info" not in line)

    def start(self, *arguments: str) -> None:
        """Start containerd with these flags. Raises CommandFailed if it does not start."""
        directories = ["--root", f"{self._directory}/root", "--state", f"{self._directory}/state"]
        command = ["unshare", "--mount", "sh", "-c", _ENTER, str(self._directory)]
        command += [self._release.program("containerd"), *directories, "--address", str(self.socket), *arguments]
        self._process = Process(command, self._directory / "log")
        wait_for(self._booted, "containerd has started", pause=0.005)

    def pull(self, name: str) -> str:
        """Pull through the CRI API. Return `PULLED`, or the error."""
        return wait_for(partial(self._pulled, name), "the CRI plug-in has started") or ""

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run `command` in the machine's mount namespace."""
        assert self._process is not None
        inside = ["nsenter", "--target", str(self._process.pid), "--mount", *command]
        return subprocess.run(inside, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in the machine's mount namespace: in a new thread of this process, which enters it."""
        assert self._process is not None
        namespace = Path("/proc", str(self._process.pid), "ns/mnt")
        with ThreadPoolExecutor(max_workers=1) as executor:
            executor.submit(_enter, namespace).result()
            return executor.submit(function).result()

    def digests(self) -> set[str]:
        """Return the digests of all complete content that Kubernetes sees."""
        return set(self._ctr("content", "ls", "-q").split())

    def collect_garbage(self) -> None:
        """Make containerd drop content that nothing refers to, and wait until it has."""
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


def _enter(namespace: Path) -> None:
    """Let this thread, and those that it starts, enter a mount namespace.

    Raises:
        OSError: The kernel does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with namespace.open() as file:
        # A thread that shares its working directory with others can't enter a mount namespace.
        if libc.unshare(_CLONE_FS) or libc.setns(file.fileno(), _CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), f"can't enter {namespace}")
