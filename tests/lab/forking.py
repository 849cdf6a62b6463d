"""The process of fork_server.py: it imports the command `peili`, and forks for each start of it.

Each message is JSON: a `Start`, or the id of a process that has ended. The answer is a process id, or the status of
waitpid(2).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from tests.lab.namespaces import enter

MAX_MESSAGE = 1 << 16
_COMMAND = "peili.adapters.standalone.cli"
_USED = (
    "peili.adapters.standalone.hosts",
    "peili.routers.mdns",
    "peili.stores.containerd",
    "peili.stores.oci_layout",
)
"""What the command imports later. A module that is missing here costs time, and nothing else."""
_PR_SET_PDEATHSIG = 1


class Start(NamedTuple):
    """A request to start the command. The fields are the arguments of `ForkServer.start`."""

    arguments: list[str]
    log: str
    namespace: str | None

    def prepare(self, parent: int) -> None:
        """Give this process the streams, the arguments and the namespace of the command. It ends with `parent`."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        assert os.getppid() == parent, "the parent ended before"
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(log, sys.stdout.fileno())
        os.dup2(log, sys.stderr.fileno())
        os.close(log)
        if self.namespace is not None:
            enter(Path(self.namespace))
        sys.argv = ["peili", *self.arguments]


def main() -> int:
    """Answer requests until the other side closes the connection. In a forked process, run the command."""
    command, _ = import_module(_COMMAND).main, [import_module(each) for each in _USED]
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads can't fork safely"  # noqa: PTH208
    parent = os.getpid()
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        while message := requests.recv(MAX_MESSAGE):
            request = json.loads(message)
            if isinstance(request, int):
                answer = os.waitpid(request, 0)[1]
            elif (answer := os.fork()) == 0:
                requests.close()
                Start(**request).prepare(parent)
                return int(command())
            requests.send(str(answer).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
