"""systemd's protocols for services: it passes sockets (sd_listen_fds(3)), and receives states (sd_notify(3)).

Other programs use the same protocols.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator, Iterable, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from peili.mirror import ConfigError
from peili.mirror.server.listening import address_of

DOORS = ("local", "peer", "ops")
_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@dataclass(frozen=True, slots=True)
class PassedSockets:
    """The sockets that the process was started with, by door. A door without sockets uses its configuration."""

    local: tuple[socket.socket, ...] = ()
    peer: tuple[socket.socket, ...] = ()
    ops: tuple[socket.socket, ...] = ()

    @property
    def local_addresses(self) -> tuple[str, ...]:
        """``host:port`` of the local door's TCP sockets. `bind` refuses sockets of other kinds."""
        return tuple(address_of(each) for each in self.local if each.family in {socket.AF_INET, socket.AF_INET6})


@contextmanager
def passed_sockets(environ: MutableMapping[str, str]) -> Generator[PassedSockets]:
    """Take over the sockets that `environ` describes; they are closed on exit.

    The variables are removed from `environ`, and child processes do not inherit the sockets, because neither is for
    them. Variables with the process id of another process are removed and ignored.

    Raises:
        ConfigError: A socket does not have a door's name, or a descriptor is not a socket.
    """
    pid, count, names = (environ.pop(each, "") for each in _VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        yield PassedSockets()
        return
    with ExitStack() as stack:
        sockets = [stack.enter_context(_take_over(_FIRST_DESCRIPTOR + index)) for index in range(int(count))]
        yield _by_door(sockets, names.split(":"))


def _take_over(descriptor: int) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        return socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError("LISTEN_FDS", f"sockets from 3 on, but {descriptor} is none: {error.strerror}") from error


def _by_door(sockets: Iterable[socket.socket], names: list[str]) -> PassedSockets:
    doors: dict[str, list[socket.socket]] = {door: [] for door in DOORS}
    for index, each in enumerate(sockets):
        name = names[index] if index < len(names) else ""
        if name not in doors:
            expected = "FileDescriptorName=local, peer or ops in the socket's unit"
            raise ConfigError("LISTEN_FDNAMES", f"{expected}, not {name!a}")
        doors[name].append(each)
    return PassedSockets(*(tuple(doors[door]) for door in DOORS))


class Notifier:
    """Sends the state of the service to systemd.

    Nothing here blocks or raises, because a service must not fail if nobody listens. If the socket's queue is full, the
    states are sent with the next message, which is the next heartbeat if there are any. Without an address, nothing is
    sent. A context manager that closes the socket.

    Args:
        address: The socket: a path, or ``@`` and an abstract name.
        watchdog: Seconds within which systemd expects each heartbeat; None if it expects none.
    """

    def __init__(self, address: str | None, *, watchdog: float | None = None) -> None:
        self.watchdog = watchdog
        self._socket: socket.socket | None = None
        self._unsent: list[str] = []
        if address and address[0] in "/@":
            self._address = "\0" + address[1:] if address[0] == "@" else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Create one from NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""
        microseconds = environ.get("WATCHDOG_USEC", "")
        for_us = environ.get("WATCHDOG_PID") in {None, str(os.getpid())}
        expected = for_us and microseconds.isdecimal() and int(microseconds) > 0
        return cls(environ.get("NOTIFY_SOCKET"), watchdog=int(microseconds) / 1e6 if expected else None)

    def send(self, *states: str) -> None:
        """Send `states`, such as ``READY=1``, in one message."""
        if self._socket is not None:
            self._unsent += states
        self._send("\n".join(self._unsent))

    def alive(self) -> None:
        """Send a heartbeat."""
        self._send("\n".join([*self._unsent, "WATCHDOG=1"]))

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        with suppress(OSError):  # nobody listens, and a service cannot fix that
            try:
                self._socket.sendto(message.encode(), self._address)
            except BlockingIOError:
                return
        self._unsent.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            self._socket.close()
