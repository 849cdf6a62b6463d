"""The connections to peers: they are made, kept for a while when they are idle, and used again."""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict

from peili.mirror.client.connecting import Origin, connect
from peili.mirror.client.connection import Connection
from peili.mirror.client.dns import AddressResolver
from peili.mirror.tls.peer_tls import PeerTLS

KEEP_ALIVE = 15.0
"""Seconds for which an idle connection is kept. `serve` keeps it for longer, so that the client usually closes first.

The server of a host agent may close it earlier (uvicorn: after 5 s). That is harmless: a closed connection is not used,
and a request without a body is sent again if the connection ends before the response begins.
"""
CONNECT_TIMEOUT = "no connection in time"
"""What is wrong if a connection takes too long."""
_MAX_IDLE = 256


class ConnectError(Exception):
    """No connection could be made. Its message says why."""


class ConnectionPool:
    """The connections of one client. An idle one is kept for `KEEP_ALIVE` seconds, to save the handshake.

    Used on one event loop. Call `close` at the end.

    Args:
        tls: How to connect to https origins. None means with the certificate authorities of the system.

    Attributes:
        is_closed: Whether `close` was called.
    """

    def __init__(self, tls: ssl.SSLContext | PeerTLS | None) -> None:
        self._tls = tls
        self._resolver = AddressResolver()
        self._idle: OrderedDict[Connection, float] = OrderedDict()  # with the time since when; the oldest is first
        self._idle_of: dict[Origin, list[Connection]] = {}  # the same connections
        self._active: set[Connection] = set()
        self._expiry: asyncio.TimerHandle | None = None
        self.is_closed = False

    def take_idle(self, origin: Origin) -> Connection | None:
        """Take the idle connection to `origin` that was used last, if there is one. So the others expire."""
        while connections := self._idle_of.get(origin):
            connection = connections[-1]
            self._remove_idle(connection)
            if connection.transport.is_quiet() and self._is_current(connection):
                self._active.add(connection)
                return connection
            connection.transport.close()
        return None

    def _is_current(self, connection: Connection) -> bool:
        """Return whether a new connection would have the same TLS context: the peer may have been revoked since."""
        return not isinstance(self._tls, PeerTLS) or connection.transport.tls is self._tls.contexts().client

    async def connect(self, origin: Origin, timeout: float) -> Connection:
        """Make a new connection to `origin` within `timeout` seconds.

        Raises:
            ConnectError: The connection failed, or the pool is closed.
        """
        if self.is_closed:
            raise ConnectError("this client is closed")
        if origin.is_secure and self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)  # reads many files
        try:
            transport = await connect(origin, self._tls if origin.is_secure else None, timeout, self._resolver)
        except TimeoutError as error:
            raise ConnectError(CONNECT_TIMEOUT) from error
        except (OSError, UnicodeError) as error:
            raise ConnectError(str(error) or type(error).__name__) from error
        if self.is_closed:  # in the meantime
            transport.close()
            raise ConnectError("this client is closed")
        is_on_trial = transport.tls is not None and isinstance(self._tls, PeerTLS)
        connection = Connection(origin, transport, self._release, is_on_trial=is_on_trial)
        self._active.add(connection)
        return connection

    def close(self) -> None:
        """Close the idle connections, and end the streams of the others. Idempotent."""
        self.is_closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        self._resolver.close()
        while self._idle:
            self._close_oldest()
        for connection in self._active:
            connection.transport.interrupt()

    def _release(self, connection: Connection, is_reusable: bool) -> None:
        self._active.discard(connection)
        if not is_reusable or self.is_closed:
            connection.transport.close()
            return
        loop = asyncio.get_running_loop()
        self._idle[connection] = loop.time()
        self._idle_of.setdefault(connection.origin, []).append(connection)
        if len(self._idle) > _MAX_IDLE:
            self._close_oldest()
        if self._expiry is None:
            self._expiry = loop.call_later(KEEP_ALIVE, self._close_expired)

    def _remove_idle(self, connection: Connection) -> None:
        del self._idle[connection]
        others = self._idle_of[connection.origin]
        others.remove(connection)
        if not others:
            del self._idle_of[connection.origin]

    def _close_oldest(self) -> None:
        connection = next(iter(self._idle))
        self._remove_idle(connection)
        connection.transport.close()

    def _close_expired(self) -> None:
        loop = asyncio.get_running_loop()
        self._expiry = None
        while self._idle:
            expires = next(iter(self._idle.values())) + KEEP_ALIVE
            if loop.time() < expires:
                self._expiry = loop.call_at(expires, self._close_expired)
                return
            self._close_oldest()
