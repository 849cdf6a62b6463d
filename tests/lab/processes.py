"""Child processes of tests: start them, wait for conditions, stop them.

The kernel kills each child when the test process ends, and each wait has a deadline.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

T = TypeVar("T")

DEADLINE = 240.0
"""Seconds after which a wait fails. Even on a slow and busy machine, only something broken takes longer.

It only bounds how long a failure takes. No test is about it.
"""

ENVIRONMENT = {
    "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"]),
    "HOME": "/nonexistent",
    "PEILI_CONFIG": "",
    "LC_ALL": "C.UTF-8",
}
"""The environment variables of all children. Proxies, PEILI_… keys and registry logins of the caller are not in it."""


class CommandFailed(Exception):
    """A command ended with an exit status other than 0. The message contains its output."""


def die_with_parent(command: Sequence[str]) -> list[str]:
    """Return `command`, extended so that the kernel kills it when the thread that started it ends.

    A killed test run therefore leaves no process behind.
    """
    return ["setpriv", "--pdeathsig", "KILL", *command]


def run(command: Sequence[str], *, timeout: float = DEADLINE) -> bytes:
    """Run `command` and return its standard output.

    Raises:
        CommandFailed: The exit status is not 0.
        subprocess.TimeoutExpired: The command did not end in `timeout` seconds.
    """
    done = subprocess.run(die_with_parent(command), env=ENVIRONMENT, capture_output=True, timeout=timeout, check=False)
    if done.returncode:
        output = (done.stdout + done.stderr).decode(errors="replace")
        raise CommandFailed(f"{' '.join(command)} ended with {done.returncode}:\n{output}")
    return done.stdout


def wait_for(condition: Callable[[], T], what: str, *, timeout: float = DEADLINE, pause: float = 0.02) -> T:
    """Call `condition` until it returns something true, and return that.

    Args:
        condition: Called every `pause` seconds.
        what: What the test waits for, for the message of the failure.
        timeout: Seconds after which the test fails with AssertionError.
        pause: Seconds between two calls.
    """
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain: {what}")
        time.sleep(pause)
    return answer


def freeze(pid: int) -> None:
    """Stop the process with SIGSTOP, and return when each of its threads has stopped.

    The signal alone does not promise that: kill(2) returns earlier.
    """
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: _thread_states(pid) <= {"T", "t", "Z", "X"}, f"process {pid} has stopped", pause=0.001)


def is_idle(pid: int) -> bool:
    """Return whether each thread of a process waits for something at this moment, and not only for a processor."""
    return _thread_states(pid) <= {"S"}


def _thread_states(pid: int) -> set[str]:
    """Return in which states the threads of a process are, as proc(5) has them. It may have ended."""
    states = set[str]()
    with suppress(FileNotFoundError, ProcessLookupError):  # the process has ended
        for task in Path("/proc", str(pid), "task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
                states.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return states


class Child(Protocol):
    """What `Process` needs of `subprocess.Popen`."""

    @property
    def pid(self) -> int:
        """The process id."""
        ...

    def poll(self) -> int | None:
        """Return the exit status, or None as long as the process runs."""
        ...

    def wait(self, timeout: float) -> int:
        """Return the exit status when the process has ended. Raises subprocess.TimeoutExpired."""
        ...

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless the process has ended."""
        ...


def start_program(command: Sequence[str], log: Path, *, keep: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start a program. For the arguments, see `Process`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            die_with_parent(command),
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=keep,
        )


class Process:
    """A child process, started by the constructor.

    Args:
        command: The program and its arguments.
        log: The file to which standard output and standard error are appended.
        keep: File descriptors that the child inherits.
        child: The process, if it has been started already.
    """

    def __init__(
        self, command: Sequence[str], log: Path, *, keep: Sequence[int] = (), child: Child | None = None
    ) -> None:
        self.command = command
        self.log = log
        self._child: Child = start_program(command, log, keep=keep) if child is None else child
        self.pid = self._child.pid
        self._is_terminated = False

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._child.poll() is None

    def output(self) -> str:
        """Return the content of the log file, including what earlier processes wrote to it."""
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float = DEADLINE) -> int:
        """Wait until the process ends, and return its exit status. It is negative if a signal ended the process.

        Raises:
            subprocess.TimeoutExpired: The process did not end in `timeout` seconds.
        """
        return self._child.wait(timeout)

    def succeed(self, timeout: float = DEADLINE) -> None:
        """Wait until the process ends with the exit status 0.

        Raises:
            CommandFailed: The exit status is not 0.
            subprocess.TimeoutExpired: The process did not end in `timeout` seconds.
        """
        if status := self.wait(timeout):
            raise CommandFailed(f"{' '.join(self.command)} ended with {status}:\n{self.output()}")

    def terminate(self) -> None:
        """Send SIGTERM, and do not wait until the process ends. A second call does nothing: peili would end at once."""
        if not self._is_terminated:
            self._is_terminated = True
            self.resume()
            self._child.send_signal(signal.SIGTERM)

    def stop(self, timeout: float = DEADLINE) -> int:
        """Send SIGTERM, and after `timeout` seconds SIGKILL. Return the exit status."""
        self.terminate()
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """Send SIGKILL, and return the exit status. The process cannot notify its peers."""
        self._child.send_signal(signal.SIGKILL)
        return self.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process. This does nothing if the process has ended."""
        self._child.send_signal(number)

    def freeze(self) -> None:
        """Stop all threads of the process until `resume`. This does nothing if the process has ended."""
        if self.is_running:
            freeze(self.pid)

    def resume(self) -> None:
        """Continue a frozen process. This does nothing if the process is not frozen."""
        self._child.send_signal(signal.SIGCONT)
