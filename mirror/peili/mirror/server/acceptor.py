"""Accepts the connections of one door: no more than may be, and no more than the process has descriptors for.

asyncio's own servers accept until no descriptor is left for anything else, and then report each of the tries that
follow. What is said on a connection is its protocol's matter.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from peili.mirror.limits import Limits

_AT_ONCE = 16
"""Connections that are accepted before others have their turn …"""
_TAKEN_AT_ONCE = 1
"""… and of them those that are not closed at once, each of which costs ten times as much. To end one does, too."""
_SHARE = 3
"""A door may have one part in so many of the process's descriptors. Two doors leave one part for all else: files, the
runtime, peers, and whatever the process does besides."""
_PAUSE = 1.0
"""Seconds for which nothing is accepted where that fails and a waiting connection can't even be closed."""
_YOUNG = 1.0
"""Seconds that a connection is given to ask something, before it is closed for the sake of a new one."""
_EVICTION = 0.01
"""Seconds between two connections that are closed for the sake of new ones, which costs more than to refuse these."""
_TOLD_AGAIN = 60.0
_EXHAUSTED = {errno.EMFILE, errno.ENFILE}
_OF_THE_CONNECTION = {
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    errno.EPROTO,
    errno.ETIMEDOUT,
}
"""What accept(2) reports of a connection that failed before it was accepted: the next one may be good."""


class ConnectionSlot:
    """What a connection holds of its door's connections, from being accepted until it is lost.

    Attributes: `transport` is the connection's, once it is made.
    """

    __slots__ = ("_slots", "opening", "transport")

    def __init__(self, places: _ConnectionSlots) -> None:
        self._slots = places
        self.opening: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport | None = None

    def wait(self) -> None:
        """The connection waits for a request from now on: it may be closed for the sake of a new one."""
        self._slots.idle(self)

    def work(self) -> None:
        """A request of the connection is being answered: it stays."""
        self._slots.busy(self)

    def leave(self) -> None:
        """The connection is lost. Idempotent."""
        self._slots.free(self)

    @property
    def is_done(self) -> bool:
        """Whether all that was answered has been sent."""
        return self.transport is None or not self.transport.get_write_buffer_size()

    def end_in_turn(self) -> None:
        """Close the connection soon. Where many end at the same time, others have their turns in between."""
        self._slots.end_in_turn(self)

    def end(self) -> None:
        """Close the connection at once."""
        self.leave()
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()


class _ConnectionSlots:
    """The connections of one door, and which of them wait for a request."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._held: set[ConnectionSlot] = set()
        self._idle: OrderedDict[ConnectionSlot, float] = OrderedDict()  # since when; the longest first
        self._ending: deque[ConnectionSlot] = deque()
        self._next_end = 0.0

    def take(self, most: int) -> ConnectionSlot | None:
        """A slot for a new connection, where `most` may be: a free one, or that of whoever says nothing for longest.
        None: all are in use.
        """
        while len(self._held) >= most:
            now = self._loop.time()
            longest = self._longest(now - _YOUNG) if now >= self._next_end else None
            if longest is None:
                return None
            self._next_end = now + _EVICTION
            longest.end()
        slot = ConnectionSlot(self)
        self._held.add(slot)
        self.idle(slot)
        return slot

    def idle(self, slot: ConnectionSlot) -> None:
        if slot in self._held:
            self._idle[slot] = self._loop.time()
            self._idle.move_to_end(slot)

    def busy(self, slot: ConnectionSlot) -> None:
        self._idle.pop(slot, None)

    def free(self, slot: ConnectionSlot) -> None:
        self._held.discard(slot)
        self._idle.pop(slot, None)

    def end_in_turn(self, slot: ConnectionSlot) -> None:
        if slot in self._held:
            self._ending.append(slot)
            if len(self._ending) == 1:
                self._loop.call_soon(self._end_some)

    def _end_some(self) -> None:
        for _ in range(min(len(self._ending), _TAKEN_AT_ONCE)):
            slot = self._ending.popleft()
            if slot in self._idle:  # still: no request has come meanwhile
                slot.end()
        if self._ending:
            self._loop.call_soon(self._end_some)

    def _longest(self, old: float) -> ConnectionSlot | None:
        """Who has said nothing since before `old`."""
        for slot, since in self._idle.items():
            if since > old:
                break
            if slot.is_done:
                return slot
        return None

    def __len__(self) -> int:
        return len(self._held)


class Acceptor:
    """Accepts the connections of the door `name`, and gives each to a protocol that `protocol` makes.

    ``limits.connections`` of them may be open at a time, and never more than a third of the descriptors that the
    process may have open. Those above are closed at once, unless one that waits for a request can be closed instead.
    Where a connection can't be accepted, it is closed at once as well, so that its other side can go elsewhere. Both
    are logged once a minute; `limited` hears of each.
    """

    def __init__(
        self,
        name: str,
        protocol: Callable[[ConnectionSlot], asyncio.Protocol],
        limits: Limits,
        limited: Callable[[str], None],
        log: logging.Logger,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._protocol = protocol
        self._limits = limits
        self._limited = limited
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._slots = _ConnectionSlots()
        self._opening: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}
        self._spare: socket.socket | None = None
        self._full = _Seldom(log, f"the {name} door has %d connections, which is all that may be; others are closed")
        self._failing = _Seldom(log, f"the {name} door can't accept connections: %s")

    def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Accept what comes to `sockets`, which listen already. They stay the caller's."""
        self._spare = _spare()
        self._sockets = list(sockets)
        for each in self._sockets:
            self._loop.add_reader(each, self._accept, each)

    def close(self) -> None:
        """Accept no more. Connections that are made stay. Before the sockets are closed. Idempotent."""
        for each in self._sockets:
            self._loop.remove_reader(each)
        for timer in self._paused.values():
            timer.cancel()
        for task in self._opening:
            task.cancel()
        if self._spare is not None:
            self._spare.close()
        self._sockets, self._paused, self._spare = [], {}, None

    async def wait_closed(self) -> None:
        """Wait for what `close` cancelled."""
        while self._opening:
            await asyncio.wait(self._opening)

    def _accept(self, listening: socket.socket) -> None:
        most, taken = most_connections(self._limits), 0
        for _ in range(_AT_ONCE):
            try:
                accepted, _where = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _OF_THE_CONNECTION and not self._turn_away(listening, error):
                    return
                continue
            if (slot := self._slots.take(most)) is None:
                accepted.close()
                self._limited("connections")
                self._full.warn(len(self._slots))
                continue
            self._take(accepted, slot)
            taken += 1
            if taken == _TAKEN_AT_ONCE:
                return

    def _take(self, accepted: socket.socket, slot: ConnectionSlot) -> None:
        slot.opening = task = self._loop.create_task(self._open(accepted, self._protocol(slot)))
        self._opening.add(task)

        def opened(task: asyncio.Task[None]) -> None:
            self._opening.discard(task)
            slot.opening = None
            if slot.transport is None:  # TLS failed, or there was no time for it
                slot.leave()
                accepted.close()

        task.add_done_callback(opened)

    async def _open(self, accepted: socket.socket, protocol: asyncio.Protocol) -> None:
        timeout = self._limits.header_timeout if self._tls is not None else None
        with suppress(OSError):  # of TLS: the other side's matter
            await self._loop.connect_accepted_socket(
                lambda: protocol, accepted, ssl=self._tls, ssl_handshake_timeout=timeout
            )

    def _turn_away(self, listening: socket.socket, problem: OSError) -> bool:
        """Close the connection that waits and can't be accepted; whether that went well. Else nothing is accepted for a
        while.

        Left to wait, it would hold up its other side, such as the runtime's pull, until that gives up.
        """
        self._failing.warn(os.strerror(problem.errno) if problem.errno else problem)
        if problem.errno in _EXHAUSTED and self._spare is not None:
            self._spare.close()
            try:
                listening.accept()[0].close()
            except (BlockingIOError, InterruptedError):
                self._spare = _spare()
                return True  # it is gone
            except OSError:
                self._spare = _spare()
            else:
                self._limited("connections")
                self._spare = _spare()
                return True
        self._pause(listening)
        return False

    def _pause(self, listening: socket.socket) -> None:
        def go_on() -> None:
            del self._paused[listening]
            self._spare = self._spare or _spare()
            self._loop.add_reader(listening, self._accept, listening)

        self._loop.remove_reader(listening)
        self._paused[listening] = self._loop.call_later(_PAUSE, go_on)


class _Seldom:
    """Logs a warning once a minute at most."""

    def __init__(self, log: logging.Logger, message: str) -> None:
        self._log = log
        self._message = message
        self._next = float("-inf")

    def warn(self, what: object) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._next:
            self._next = now + _TOLD_AGAIN
            self._log.warning(self._message, what)


def most_connections(limits: Limits) -> int:
    """How many connections a door may have now: the process's limit may change at any time, and is not ours."""
    if sys.platform == "win32":
        return limits.connections
    import resource  # noqa: PLC0415 - only where there is one

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits.connections
    return max(1, min(limits.connections, soft // _SHARE))


def _spare() -> socket.socket | None:
    """Something that holds a descriptor, to have one when there are no others."""
    try:
        return socket.socket()
    except OSError:
        return None
