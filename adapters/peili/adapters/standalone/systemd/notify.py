"""Tells systemd (or who else set NOTIFY_SOCKET) how the service is: the protocol of sd_notify(3), no library."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self


class Notifier:
    """Sends states to the socket at `address`, a path or ``@`` and an abstract name; without one it does nothing.

    Never blocks and never raises: a service does not fail because nobody listens. What finds the socket's queue full is
    told with the next message: with the next heartbeat, where there are any. A context manager that closes.
    `watchdog` is the time in seconds within which systemd wants to hear ``WATCHDOG=1``; None: it does not.
    """

    def __init__(self, address: str | None, *, watchdog: float | None = None) -> None:
        self.watchdog = watchdog
        self._socket: socket.socket | None = None
        self._untold: list[str] = []
        if address and address[0] in "/@":
            self._address = "\0" + address[1:] if address[0] == "@" else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """As NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID say."""
        microseconds = environ.get("WATCHDOG_USEC", "")
        meant = environ.get("WATCHDOG_PID") in {None, str(os.getpid())}
        wanted = meant and microseconds.isdecimal() and int(microseconds) > 0
        return cls(environ.get("NOTIFY_SOCKET"), watchdog=int(microseconds) / 1e6 if wanted else None)

    def send(self, *states: str) -> None:
        """Tell `states`, such as ``READY=1``, in one message."""
        if self._socket is not None:
            self._untold += states
        self._tell("\n".join(self._untold))

    def alive(self) -> None:
        """Tell that the service is not stuck."""
        self._tell("\n".join([*self._untold, "WATCHDOG=1"]))

    def _tell(self, message: str) -> None:
        if self._socket is None:
            return
        with suppress(OSError):  # nobody listens: nothing that a service could mend
            try:
                self._socket.sendto(message.encode(), self._address)
            except BlockingIOError:
                return
        self._untold.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            self._socket.close()
