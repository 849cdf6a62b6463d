"""Accepts the connections of one door within two limits: the configured one, and the file descriptors of the process.

asyncio's own servers accept connections until the process has no free descriptor, and then log each further attempt.
The bytes of a connection are the task of its protocol (protocol.py).
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

from peili.mirror.limits import Limits
from peili.mirror.server.tls_transport import TlsServerTransport

_MAX_ACCEPTS = 16
"""The most connections that are accepted in one turn of the event loop."""
_MAX_KEPT = 1
"""The most of these that are kept open, and the most idle connections that are closed in one turn. Either costs ten
times as much as to accept a connection and close it at once.
"""
_DESCRIPTOR_SHARE = 3
"""A door may use one third of the process's descriptors. Two doors then leave one third for everything else: files, the
runtime, peers, and the rest of the process."""
_PAUSE = 1.0
"""Seconds without accepting after a connection could neither be accepted nor closed."""
_MIN_IDLE = 1.0
"""Seconds that a connection has for its first request before it may be closed to make room for a new one."""
_EVICTION_INTERVAL = 0.01
"""Seconds between two idle connections that are closed to make room for new ones. To close one costs more than to
refuse a new one.
"""
_WARNING_INTERVAL = 60.0
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE}
_CONNECTION_ERRORS = {
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
"""Errors of accept(2) that concern one connection, which failed before it was accepted. The next one may work."""


class ConnectionSlot:
    """One connection's place within the limit of its door, from the accept until the connection is lost.

    Attributes:
        transport: The transport of the connection, as soon as there is one.
        opening: The task that makes the transport.
        is_outdated: Returns whether a connection that is made now would have another TLS context.
    """

    __slots__ = ("_slots", "is_outdated", "opening", "transport")

    def __init__(self, slots: _ConnectionSlots) -> None:
        self._slots = slots
        self.opening: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport | None = None
        self.is_outdated: Callable[[], bool] = lambda: False

    def set_idle(self) -> None:
        """Note that the connection waits for a request, and may be closed to make room for a new one."""
        self._slots.set_idle(self)

    def set_busy(self) -> None:
        """Note that a request is being answered, so that the connection is kept."""
        self._slots.set_busy(self)

    def release(self) -> None:
        """Free the slot, because the connection is lost. Idempotent."""
        self._slots.release(self)

    @property
    def has_sent_all(self) -> bool:
        """Whether the transport has sent everything."""
        return self.transport is None or not self.transport.get_write_buffer_size()

    def close_soon(self) -> None:
        """Close the connection in one of the next turns of the loop, if it is still idle then."""
        self._slots.close_soon(self)

    def close(self) -> None:
        """Close the connection at once."""
        self.release()
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()


class _ConnectionSlots:
    """The connections of one door, and which of them are idle."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._used: set[ConnectionSlot] = set()
        self._idle: OrderedDict[ConnectionSlot, float] = OrderedDict()  # with the time since when; the oldest is first
        self._closing: deque[ConnectionSlot] = deque()
        self._next_eviction = 0.0

    def acquire(self, limit: int) -> ConnectionSlot | None:
        """Return a slot for a new connection.

        If `limit` slots are in use, close the connection that has been idle for longest. Return None if there is none.
        """
        while len(self._used) >= limit:
            now = self._loop.time()
            oldest = self._oldest_idle(now - _MIN_IDLE) if now >= self._next_eviction else None
            if oldest is None:
                return None
            self._next_eviction = now + _EVICTION_INTERVAL
            oldest.close()
        slot = ConnectionSlot(self)
        self._used.add(slot)
        self.set_idle(slot)
        return slot

    def set_idle(self, slot: ConnectionSlot) -> None:
        if slot in self._used:
            self._idle[slot] = self._loop.time()
            self._idle.move_to_end(slot)

    def set_busy(self, slot: ConnectionSlot) -> None:
        self._idle.pop(slot, None)

    def release(self, slot: ConnectionSlot) -> None:
        self._used.discard(slot)
        self._idle.pop(slot, None)

    def close_soon(self, slot: ConnectionSlot) -> None:
        if slot in self._used:
            self._closing.append(slot)
            if len(self._closing) == 1:
                self._loop.call_soon(self._close_some)

    def _close_some(self) -> None:
        for _ in range(min(len(self._closing), _MAX_KEPT)):
            slot = self._closing.popleft()
            if slot in self._idle:  # no request has arrived in the meantime
                slot.close()
        if self._closing:
            self._loop.call_soon(self._close_some)

    def _oldest_idle(self, before: float) -> ConnectionSlot | None:
        """Return the connection that has been idle for longest, if it has been since a time before `before`."""
        for slot, since in self._idle.items():
            if since > before:
                break
            if slot.has_sent_all:
                return slot
        return None

    def __len__(self) -> int:
        return len(self._used)


class Acceptor:
    """Accepts the connections of one door.

    At most ``limits.connections`` are open at the same time, and never more than a third of the file descriptors that
    the process may open. Further connections are closed at once, unless an idle one can be closed instead. If the
    process has no free descriptor, a new connection is closed, too, so that its client does not wait. Each of these
    events is logged at most once a minute.

    Args:
        name: The name of the door in the log.
        make_protocol: Makes the protocol of a connection.
        limits: ``connections`` (see above), and ``header_timeout``, which bounds the TLS handshake.
        limited: Called with ``connections`` for each connection that is refused, and with ``header_timeout`` for each
            whose TLS handshake takes too long.
        log: Receives the warnings.
        tls: Returns the context of a new connection over TLS. None means without TLS.
    """

    def __init__(
        self,
        name: str,
        make_protocol: Callable[[ConnectionSlot], asyncio.Protocol],
        limits: Limits,
        limited: Callable[[str], None],
        log: logging.Logger,
        *,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        self._make_protocol = make_protocol
        self._limits = limits
        self._limited = limited
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._slots = _ConnectionSlots()
        self._opening: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}
        self._reserve: socket.socket | None = None
        self._full_warning = _RateLimitedWarning(
            log, f"the {name} door has %d connections, its maximum; others are closed"
        )
        self._error_warning = _RateLimitedWarning(log, f"the {name} door can't accept connections: %s")
        self._tls_warning = _RateLimitedWarning(log, f"the {name} door refused a connection in the TLS handshake: %s")

    def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections on `sockets`, which listen already. The caller closes the sockets."""
        self._reserve = _reserve_descriptor()
        self._sockets = list(sockets)
        for each in self._sockets:
            self._loop.add_reader(each, self._accept, each)

    def close(self) -> None:
        """Stop accepting. Open connections stay open. Call it before the sockets are closed. Idempotent."""
        for each in self._sockets:
            self._loop.remove_reader(each)
        for timer in self._paused.values():
            timer.cancel()
        for task in self._opening:
            task.cancel()
        if self._reserve is not None:
            self._reserve.close()
        self._sockets, self._paused, self._reserve = [], {}, None

    async def wait_closed(self) -> None:
        """Wait until the tasks that `close` cancelled have ended."""
        while self._opening:
            await asyncio.wait(self._opening)

    def _accept(self, listener: socket.socket) -> None:
        limit, opened = max_connections(self._limits), 0
        for _ in range(_MAX_ACCEPTS):
            try:
                connection, _address = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _CONNECTION_ERRORS and not self._reject(listener, error):
                    return
                continue
            if (slot := self._slots.acquire(limit)) is None:
                connection.close()
                self._limited("connections")
                self._full_warning.log(len(self._slots))
                continue
            self._start_opening(connection, slot)
            opened += 1
            if opened == _MAX_KEPT:
                return

    def _start_opening(self, connection: socket.socket, slot: ConnectionSlot) -> None:
        slot.opening = task = self._loop.create_task(self._open(connection, slot, self._make_protocol(slot)))
        self._opening.add(task)

        def opened(task: asyncio.Task[None]) -> None:
            self._opening.discard(task)
            slot.opening = None
            if slot.transport is None:  # the TLS handshake failed or was cancelled
                slot.release()
                connection.close()

        task.add_done_callback(opened)

    async def _open(self, connection: socket.socket, slot: ConnectionSlot, protocol: asyncio.Protocol) -> None:
        try:
            if (current := self._tls) is None:
                await self._loop.connect_accepted_socket(lambda: protocol, connection)
            else:
                context = current()
                slot.is_outdated = lambda: current() is not context
                await self._secure(connection, context, protocol)
        except ssl.SSLEOFError:
            pass  # the client has disconnected
        except ssl.SSLError as error:  # for example, the client has no certificate, or one of another authority
            self._tls_warning.log(error)
        except (TimeoutError, ConnectionAbortedError) as error:
            if error.errno is None:  # not of the network: the handshake takes too long
                self._limited("header_timeout")
        except OSError:
            pass  # the client has disconnected

    async def _secure(self, connection: socket.socket, context: ssl.SSLContext, protocol: asyncio.Protocol) -> None:
        """Make the TLS handshake. Clients that need no certificate get asyncio's TLS.

        It is slower, but reads a bounded part of what a client sends, where OpenSSL on a socket reads on as long as
        messages of TLS itself arrive.
        """
        timeout = self._limits.header_timeout
        if context.verify_mode is ssl.CERT_REQUIRED:
            await TlsServerTransport.start(connection, context, protocol, timeout)
        else:
            await self._loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=context, ssl_handshake_timeout=timeout
            )

    def _reject(self, listener: socket.socket, error: OSError) -> bool:
        """Close the next connection, which cannot be accepted. Return whether that worked; if not, pause.

        If the connection stayed open, its client, for example a pull of the runtime, would wait until it times out.
        """
        self._error_warning.log(os.strerror(error.errno) if error.errno else error)
        if error.errno in _NO_DESCRIPTORS and self._reserve is not None:
            self._reserve.close()
            try:
                listener.accept()[0].close()
            except (BlockingIOError, InterruptedError):
                self._reserve = _reserve_descriptor()
                return True  # the client has closed it
            except OSError:
                self._reserve = _reserve_descriptor()
            else:
                self._limited("connections")
                self._reserve = _reserve_descriptor()
                return True
        self._pause(listener)
        return False

    def _pause(self, listener: socket.socket) -> None:
        def resume() -> None:
            del self._paused[listener]
            self._reserve = self._reserve or _reserve_descriptor()
            self._loop.add_reader(listener, self._accept, listener)

        self._loop.remove_reader(listener)
        self._paused[listener] = self._loop.call_later(_PAUSE, resume)


class _RateLimitedWarning:
    """Logs a warning at most once a minute."""

    def __init__(self, log: logging.Logger, message: str) -> None:
        self._log = log
        self._message = message
        self._next = float("-inf")

    def log(self, argument: object) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._next:
            self._next = now + _WARNING_INTERVAL
            self._log.warning(self._message, argument)


def max_connections(limits: Limits) -> int:
    """Return how many connections a door may have now. The process's limit of descriptors may change at any time."""
    if sys.platform == "win32":
        return limits.connections
    import resource  # noqa: PLC0415 - does not exist on Windows

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits.connections
    return max(1, min(limits.connections, soft // _DESCRIPTOR_SHARE))


def _reserve_descriptor() -> socket.socket | None:
    """Return an object that occupies one descriptor, so that one can be freed when there are no others."""
    try:
        return socket.socket()
    except OSError:
        return None
