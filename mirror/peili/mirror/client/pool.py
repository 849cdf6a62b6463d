"""Connections to peers, kept for a while after each answer, so that many small blobs don't pay a handshake each."""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict

from peili.mirror.client.connection import Connection
from peili.mirror.client.dns import AddressResolver
from peili.mirror.client.transport import Origin, connect

KEEP = 15.0
"""Seconds for which an idle connection is kept: fewer than `serve` does, so that few are closed as they are used.
A host that has the peer door in a server of its own may close them sooner (uvicorn: after 5 s). That is harmless: one
that is seen to be closed is not used, and what is asked on one that ends before its answer begins, is asked afresh."""
NOT_IN_TIME = "no connection in time"
_MOST_IDLE = 256


class ConnectError(Exception):
    """No connection could be made; its cause says why."""


class ConnectionPool:
    """The connections of one client. Used on one loop; `close` when done. `tls` None: the system's authorities."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._names = AddressResolver()
        self._idle: OrderedDict[Connection, float] = OrderedDict()  # since when; the longest first
        self._idle_to: dict[Origin, list[Connection]] = {}  # the same ones
        self._used: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self.is_closed = False

    def kept(self, origin: Origin) -> Connection | None:
        """A kept connection to `origin`, the one used last first: the others may then grow old. `ask` it."""
        while connections := self._idle_to.get(origin):
            connection = connections[-1]
            self._forget(connection)
            if connection.transport.is_quiet():
                self._used.add(connection)
                return connection
            connection.transport.close()
        return None

    async def connect(self, origin: Origin, timeout: float) -> Connection:
        """A new connection to `origin` within `timeout` seconds; `ask` it. Raises ConnectError."""
        if self.is_closed:
            raise ConnectError("this client is closed")
        if origin.secure and self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)  # reads many files
        try:
            transport = await connect(origin, self._tls if origin.secure else None, timeout, self._names)
        except TimeoutError as error:
            raise ConnectError(NOT_IN_TIME) from error
        except (OSError, UnicodeError) as error:
            raise ConnectError(str(error) or type(error).__name__) from error
        if self.is_closed:  # meanwhile
            transport.close()
            raise ConnectError("this client is closed")
        connection = Connection(origin, transport, self._done)
        self._used.add(connection)
        return connection

    def close(self) -> None:
        """Close those that are idle, and let those who use the others see the end. Idempotent."""
        self.is_closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        self._names.close()
        while self._idle:
            self._drop_oldest()
        for connection in self._used:
            connection.transport.interrupt()

    def _forget(self, connection: Connection) -> None:
        """`connection` is idle no longer."""
        del self._idle[connection]
        others = self._idle_to[connection.origin]
        others.remove(connection)
        if not others:
            del self._idle_to[connection.origin]

    def _drop_oldest(self) -> None:
        connection = next(iter(self._idle))
        self._forget(connection)
        connection.transport.close()

    def _done(self, connection: Connection, reusable: bool) -> None:
        self._used.discard(connection)
        if not reusable or self.is_closed:
            connection.transport.close()
            return
        loop = asyncio.get_running_loop()
        self._idle[connection] = loop.time()
        self._idle_to.setdefault(connection.origin, []).append(connection)
        if len(self._idle) > _MOST_IDLE:
            self._drop_oldest()
        if self._sweep is None:
            self._sweep = loop.call_later(KEEP, self._drop_old)

    def _drop_old(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = None
        while self._idle:
            expires = next(iter(self._idle.values())) + KEEP
            if loop.time() < expires:
                self._sweep = loop.call_at(expires, self._drop_old)
                return
            self._drop_oldest()
