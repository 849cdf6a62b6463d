"""Floods a door, as a process of its own on one processor: `python -m bench.flood PORT IDLE PIPELINED HANDSHAKES`.

IDLE connections send nothing. PIPELINED connections send 65 kB of requests and read no response. HANDSHAKES connections
begin a handshake of TLS, and end when the server has answered, which costs it a signature. A closed connection is
opened again at once. The process prints ``ready`` when each connection has been opened once, and ends when its standard
input ends.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import ssl
import sys
from collections import deque
from contextlib import suppress

_REQUESTS = b"GET /v2/ HTTP/1.1\r\nHost: door.example\r\n\r\n" * 1600
_MAX_CONNECTS = 64
"""The most connections that are opened before events are handled."""
_CLOSED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


def _client_hello() -> bytes:
    """Return the first message of a handshake."""
    context, sent = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="door.example").do_handshake()
    return sent.read()


_HELLO = _client_hello()


class _Connection:
    """A connection that sends `data` and reads nothing. One that has sent `_HELLO` ends when there is an answer."""

    def __init__(self, port: int, data: bytes) -> None:
        self.data = data
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self._unsent = memoryview(data)
        with suppress(BlockingIOError):
            self.socket.connect(("127.0.0.1", port))

    @property
    def events(self) -> int:
        """The events of epoll(7) to wait for."""
        return _CLOSED | (select.EPOLLOUT if self._unsent else 0) | (select.EPOLLIN if self.data is _HELLO else 0)

    def send(self) -> None:
        """Send as much as the socket accepts."""
        with suppress(OSError):  # a closed connection is an event
            self._unsent = self._unsent[self.socket.send(self._unsent) :]


class Flood:
    """Connections to `port`, each opened again when it is closed."""

    def __init__(self, port: int, idle: int, pipelined: int, handshakes: int) -> None:
        self._port = port
        self._epoll = select.epoll()
        self._pending = deque(
            [b""] * idle + [_REQUESTS] * pipelined + [_HELLO] * handshakes
        )  # the data of connections to open
        self._open: dict[int, _Connection] = {}
        self._missing = len(self._pending)  # connections that were never open

    def run(self) -> None:
        """Run until the standard input ends."""
        self._epoll.register(sys.stdin, select.EPOLLIN | select.EPOLLHUP)
        while True:
            for _ in range(min(_MAX_CONNECTS, len(self._pending))):
                self._connect(self._pending.popleft())
            for fd, events in self._epoll.poll(0 if self._pending else -1):
                if fd == sys.stdin.fileno():
                    return
                self._handle(fd, events)

    def _connect(self, data: bytes) -> None:
        connection = _Connection(self._port, data)
        self._open[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket, connection.events)
        self._missing -= 1
        if self._missing == 0:
            sys.stdout.write("ready\n")
            sys.stdout.flush()

    def _handle(self, fd: int, events: int) -> None:
        connection = self._open[fd]
        if not events & (_CLOSED | select.EPOLLIN):
            connection.send()
            self._epoll.modify(fd, connection.events)
            return
        del self._open[fd]
        self._epoll.unregister(fd)
        connection.socket.close()
        self._pending.append(connection.data)


def main() -> None:
    """Flood the port in the arguments, on one processor."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    Flood(*map(int, sys.argv[1:])).run()


if __name__ == "__main__":
    main()
