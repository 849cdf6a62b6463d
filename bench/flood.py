"""Floods a door, as a process of its own on one processor: `python -m bench.flood PORT IDLE PIPELINED`.

So many connections say nothing, and so many send 65 kB of requests and read no answer. Each is made again as soon as it
is closed. It says ``ready`` when each has been made once, and ends with its standard input.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import sys
from collections import deque
from contextlib import suppress

_REQUESTS = b"GET /v2/ HTTP/1.1\r\nHost: door.example\r\n\r\n" * 1600
_AT_ONCE = 64
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class _Connection:
    """One that has `left` to say."""

    def __init__(self, port: int, says: bytes) -> None:
        self.says = says
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self._left = memoryview(says)
        with suppress(BlockingIOError):
            self.socket.connect(("127.0.0.1", port))

    @property
    def events(self) -> int:
        """What it waits for; answers are not read."""
        return _ENDED | (select.EPOLLOUT if self._left else 0)

    def go_on(self) -> None:
        """Say more."""
        with suppress(OSError):  # its end is an event
            self._left = self._left[self.socket.send(self._left) :]


class Flood:
    """Connections to `port` that are made over and over."""

    def __init__(self, port: int, idle: int, pipelined: int) -> None:
        self._port = port
        self._epoll = select.epoll()
        self._wanted = deque([b""] * idle + [_REQUESTS] * pipelined)
        self._open: dict[int, _Connection] = {}
        self._to_come = len(self._wanted)

    def run(self) -> None:
        """Until the standard input ends."""
        self._epoll.register(sys.stdin, select.EPOLLIN | select.EPOLLHUP)
        while True:
            for _ in range(min(_AT_ONCE, len(self._wanted))):
                self._connect(self._wanted.popleft())
            for fd, events in self._epoll.poll(0 if self._wanted else -1):
                if fd == sys.stdin.fileno():
                    return
                self._handle(fd, events)

    def _connect(self, says: bytes) -> None:
        connection = _Connection(self._port, says)
        self._open[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket, connection.events)
        self._to_come -= 1
        if self._to_come == 0:
            sys.stdout.write("ready\n")
            sys.stdout.flush()

    def _handle(self, fd: int, events: int) -> None:
        connection = self._open[fd]
        if not events & _ENDED:
            connection.go_on()
            self._epoll.modify(fd, connection.events)
            return
        del self._open[fd]
        self._epoll.unregister(fd)
        connection.socket.close()
        self._wanted.append(connection.says)


def main() -> None:
    """Flood what the arguments say."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    port, idle, pipelined = map(int, sys.argv[1:])
    Flood(port, idle, pipelined).run()


if __name__ == "__main__":
    main()
