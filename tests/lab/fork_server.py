"""Starts the command `peili` by forking a process that has imported it. This saves the imports of each host.

The forked process runs the same function as the installed command, and ends as a program does. It has its own standard
streams, arguments and network namespace. What a test run has started ends with it.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.lab import forking
from tests.lab.processes import ENVIRONMENT

_ROOT = Path(__file__).parents[2]


class ForkedChild:
    """A process that the server has forked: a `processes.Child`.

    Args:
        server: The server. It is the parent of the process, so only it can read the exit status.
        pid: The process id. No other process has it until the exit status is read.
    """

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._status: int | None = None
        self._handle = os.pidfd_open(pid)
        self._close = weakref.finalize(self, os.close, self._handle)

    def poll(self) -> int | None:
        """Return the exit status, or None as long as the process runs."""
        return self._status if self._has_ended(0) else None

    def wait(self, timeout: float) -> int:
        """Return the exit status when the process has ended. Raises subprocess.TimeoutExpired."""
        if not self._has_ended(timeout):
            raise subprocess.TimeoutExpired("peili", timeout)
        assert self._status is not None
        return self._status

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless the process has ended."""
        if self._status is None:
            signal.pidfd_send_signal(self._handle, sig)  # does nothing to a process whose status is not read yet

    def _has_ended(self, timeout: float) -> bool:
        if self._status is None:
            end = select.poll()
            end.register(self._handle, select.POLLIN)
            if end.poll(timeout * 1000):
                self._status = self._server.exit_status(self.pid)
                self._close()
        return self._status is not None


class ForkServer:
    """The server, started by the constructor. It ends with this process. Threads may use it at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                # It ends when its connection does. With `die_with_parent`, it would end with the thread that is here.
                [sys.executable, "-m", forking.__name__, str(theirs.fileno())],
                cwd=_ROOT,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the tests, which then stop their processes
            )

    def start(self, arguments: Sequence[str], log: Path, *, namespace: Path | None = None) -> ForkedChild:
        """Start the command `peili`.

        Args:
            arguments: Its arguments.
            log: The file to which standard output and standard error are appended.
            namespace: The file of the network namespace in which it runs. The default is that of this process.
        """
        start = forking.Start(list(arguments), str(log), None if namespace is None else str(namespace))
        return ForkedChild(self, self._ask(start._asdict()))

    def exit_status(self, pid: int) -> int:
        """Return the exit status of a process that has ended, as `subprocess` has it. This works once."""
        return os.waitstatus_to_exitcode(self._ask(pid))

    def close(self) -> None:
        """End the server. The kernel ends the processes that it has started."""
        self._requests.close()
        self._process.wait()

    def _ask(self, request: object) -> int:
        with self._lock:
            self._requests.send(json.dumps(request).encode())
            answer = self._requests.recv(forking.MAX_MESSAGE)
        assert answer, "the process that forks has ended"
        return int(answer)


@cache
def fork_server() -> ForkServer:
    """Return the server of this process. The first call starts it."""
    server = ForkServer()
    atexit.register(server.close)
    return server
