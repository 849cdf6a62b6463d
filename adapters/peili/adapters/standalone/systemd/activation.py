"""Sockets that systemd, or who else speaks sd_listen_fds(3), opened before the process began. No library.

Which of them is for which door is told by their names; what is served on them is not decided here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator, Iterable, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from peili.mirror import ConfigError
from peili.mirror.server.listening import shown

DOORS = ("local", "peer")
_FIRST = 3  # SD_LISTEN_FDS_START
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@dataclass(frozen=True, slots=True)
class Activated:
    """The sockets handed over for each door; a door without any listens by itself."""

    local: tuple[socket.socket, ...] = ()
    peer: tuple[socket.socket, ...] = ()

    @property
    def local_addresses(self) -> tuple[str, ...]:
        """``host:port`` of the local door's TCP sockets; what others are there is refused by who listens."""
        return tuple(shown(each) for each in self.local if each.family in {socket.AF_INET, socket.AF_INET6})


@contextmanager
def activated(environ: MutableMapping[str, str]) -> Generator[Activated]:
    """The sockets that `environ` tells of, closed on leaving.

    Takes what it read out of `environ`, whoever it was meant for, and keeps the sockets from children: neither is for
    them. Raises ConfigError where a socket has no door's name, or is none to listen on.
    """
    pid, count, names = (environ.pop(each, "") for each in _VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        yield Activated()
        return
    with ExitStack() as stack:
        sockets = [stack.enter_context(_adopted(_FIRST + place)) for place in range(int(count))]
        yield _by_door(sockets, names.split(":"))


def _adopted(number: int) -> socket.socket:
    try:
        os.set_inheritable(number, False)
        return socket.socket(fileno=number)
    except OSError as error:
        raise ConfigError("LISTEN_FDS", f"sockets from 3 on, but {number} is none: {error.strerror}") from error


def _by_door(sockets: Iterable[socket.socket], names: list[str]) -> Activated:
    doors: dict[str, list[socket.socket]] = {door: [] for door in DOORS}
    for place, each in enumerate(sockets):
        name = names[place] if place < len(names) else ""
        if name not in doors:
            wanted = "FileDescriptorName=local or FileDescriptorName=peer in the socket's unit"
            raise ConfigError("LISTEN_FDNAMES", f"{wanted}, not {name!a}")
        doors[name].append(each)
    return Activated(tuple(doors["local"]), tuple(doors["peer"]))
