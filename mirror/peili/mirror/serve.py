"""Serves a mirror's doors by uvicorn, for hosts that have no ASGI server and for the command."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from peili.mirror.errors import ListenError
from peili.mirror.metrics.counters import LOCAL, PEER
from peili.mirror.mirror import Mirror
from peili.mirror.server.acceptor import Acceptor, ConnectionSlot
from peili.mirror.server.listening import Address, address_of, bind, urls_of
from peili.mirror.server.protocol import LINGER, protocol_factory

_OPS_PATHS = frozenset({"/livez", "/readyz", "/metrics", "/status"})
_KEEP_ALIVE = 30
"""Seconds for which an idle connection is kept; longer than our own client keeps one, so that it closes first."""
_SHUTDOWN = 5
"""Seconds after which uvicorn gives up waiting. Never needed: the mirror has drained, and what is left is aborted."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What `serve` listens on: ``host:port`` of each address, really bound."""

    local_addresses: tuple[str, ...]
    peer_addresses: tuple[str, ...]


@asynccontextmanager
async def serve(
    mirror: Mirror,
    *,
    local: Address | Sequence[Address],
    peer: Address | Sequence[Address] | None = None,
    peer_ssl: ssl.SSLContext | None = None,
    advertise: str | Sequence[str] | None = None,
) -> AsyncGenerator[Serving]:
    """Serve the local door and `mirror.ops` on `local`, and the peer door on `peer`, by TLS where `peer_ssl` is given.

    `advertise` is how other hosts reach the peer door, by default found out. Given sockets are duplicated and stay the
    caller's. Takes no signals and never exits the process. Does not enter the mirror: ``async with mirror,
    serve(mirror, …)``. Leaving drains the mirror first; transfers that take longer than ``limits.drain_timeout`` are
    cut. A mirror that stays entered may be served again afterwards: it is announced anew. Raises ListenError,
    ConfigError.
    """
    reader_timeout = mirror.limits.reader_timeout
    local_sockets = bind(local, any_host="127.0.0.1", reader_timeout=reader_timeout)
    peer_sockets: list[socket.socket] = []
    try:
        peer_sockets = bind(peer, any_host="::", reader_timeout=reader_timeout) if peer is not None else []
        doors = [_Server(LOCAL, _local_app(mirror), mirror)]
        if peer_sockets:
            doors.append(_Server(PEER, mirror.peer, mirror, peer_ssl))
            found = urls_of(peer_sockets, "https" if peer_ssl else "http") if advertise is None else advertise
            mirror.listens_at([found] if isinstance(found, str) else found)
        serving = Serving(tuple(map(address_of, local_sockets)), tuple(map(address_of, peer_sockets)))
        async with contextlib.AsyncExitStack() as stack:
            for door, sockets in zip(doors, (local_sockets, peer_sockets), strict=False):
                await stack.enter_async_context(door.listening(sockets))
            try:
                await mirror.resume()
                yield serving
            finally:
                await mirror.drain(mirror.limits.drain_timeout)
                for door in doors:
                    door.should_exit = True  # all at once, rather than one after the other
    finally:
        for each in (*local_sockets, *peer_sockets):
            each.close()


def _local_app(mirror: Mirror) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        to = mirror.ops if scope.get("path") in _OPS_PATHS else mirror.local
        await to(scope, receive, send)

    return app


class _Server(uvicorn.Server):
    """uvicorn without what only a process of its own may do, and with connections accepted by us."""

    def __init__(self, door: str, app: ASGIApp, mirror: Mirror, tls: ssl.SSLContext | None = None) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # X-Forwarded-For would let anybody pass for loopback
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_SHUTDOWN,
            ws="none",
        )
        config.load()
        limits, limited = mirror.limits, mirror.metrics.limited.add
        self._make = protocol_factory(config, limits, limited)
        super().__init__(config)
        self._acceptor = Acceptor(door, self._protocol, limits, limited, mirror.log, tls=tls)
        self._up = asyncio.Event()

    def _protocol(self, slot: ConnectionSlot) -> asyncio.Protocol:
        return self._make(slot, self.server_state, self.lifespan.state)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Instead of uvicorn's: its servers are asyncio's."""
        await self.lifespan.startup()
        self.servers = []
        self._acceptor.listen(sockets or [])
        self.started = True
        self._up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        self._acceptor.close()
        await super().shutdown(sockets)
        await self._acceptor.wait_closed()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals are the process's owner's."""
        yield

    @asynccontextmanager
    async def listening(self, sockets: list[socket.socket]) -> AsyncGenerator[None]:
        """Serve on `sockets`, which uvicorn closes. Raises ListenError."""
        task = asyncio.create_task(self.serve(sockets))
        up = asyncio.create_task(self._up.wait())
        try:
            await asyncio.wait({task, up}, return_when=asyncio.FIRST_COMPLETED)
            if not self._up.is_set():
                task.result()
                raise ListenError("the server ended before it listened")
            yield
        finally:
            up.cancel()
            self.should_exit = True
            abort = asyncio.get_running_loop().call_later(LINGER, self._abort)
            await asyncio.wait({task, up})
            abort.cancel()

    def _abort(self) -> None:
        """Drop the connections of those who do not take the end of their answer."""
        for each in tuple(self.server_state.connections):
            each.transport.abort()
