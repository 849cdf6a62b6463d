"""Starting, ending and waiting: every child of the laboratory is tied to this process and has a deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 60.0
"""Seconds that anything may take on a busy machine; what is slower than this is broken."""

# Nothing of the caller's surroundings gets in: no proxy, no PEILI_… key, no login of a registry.
ENVIRONMENT = {
    "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"]),
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
}


class CommandFailed(Exception):
    """A command ended with another status than 0; its output is in the message."""


def tied(command: Sequence[str]) -> list[str]:
    """`command`, killed by the kernel when the thread that starts it ends: a killed test run leaves nothing behind."""
    return ["setpriv", "--pdeathsig", "KILL", *command]


def run(command: Sequence[str], *, timeout: float = DEADLINE) -> bytes:
    """The standard output of `command`. Raises CommandFailed, subprocess.TimeoutExpired."""
    done = subprocess.run(tied(command), env=ENVIRONMENT, capture_output=True, timeout=timeout, check=False)
    if done.returncode:
        output = (done.stdout + done.stderr).decode(errors="replace")
        raise CommandFailed(f"{' '.join(command)} ended with {done.returncode}:\n{output}")
    return done.stdout


def wait_for(condition: Callable[[], T], what: str, *, timeout: float = DEADLINE, pause: float = 0.02) -> T:
    """The first true answer of `condition`. Fails the test with `what` when there is none in `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain: {what}")
        time.sleep(pause)
    return answer


def freeze(pid: int) -> None:
    """Let the process stand still; returns once each of its threads does, which the signal alone doesn't promise."""
    os.kill(pid, signal.SIGSTOP)
    tasks = Path("/proc", str(pid), "task")
    wait_for(lambda: all(_stands_still(task) for task in tasks.iterdir()), f"process {pid} stands still", pause=0.001)


def _stands_still(task: Path) -> bool:
    try:
        state = (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return True
    return state in "TtZX"


class Process:
    """A child whose output, both kinds, goes to the end of the file `log`; it inherits the descriptors `keep`."""

    def __init__(self, command: Sequence[str], log: Path, *, keep: Sequence[int] = ()) -> None:
        self.command = command
        self.log = log
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                tied(command),
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=keep,
            )
        self.pid = self._child.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._child.poll() is None

    def output(self) -> str:
        """What it and those before it have written to the log."""
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float = DEADLINE) -> int:
        """Its exit status, negative for a signal. Raises subprocess.TimeoutExpired."""
        return self._child.wait(timeout)

    def succeed(self, timeout: float = DEADLINE) -> None:
        """Wait for its end. Raises CommandFailed, subprocess.TimeoutExpired."""
        if status := self.wait(timeout):
            raise CommandFailed(f"{' '.join(self.command)} ended with {status}:\n{self.output()}")

    def stop(self, timeout: float = 20) -> int:
        """Ask it to end; kill it when it does not. Its exit status."""
        self.resume()
        self._child.terminate()
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End it at once, without a word to its peers."""
        self._child.kill()
        return self.wait()

    def freeze(self) -> None:
        """Let it stand still until `resume`; nothing happens where it has ended."""
        if self.running:
            freeze(self.pid)

    def resume(self) -> None:
        """Let it go on; nothing happens where it was not frozen."""
        self._child.send_signal(signal.SIGCONT)
