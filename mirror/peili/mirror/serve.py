"""Serves a mirror's doors with uvicorn, for the command and for host agents without an ASGI server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from peili.mirror.doors.ops import OpsMiddleware
from peili.mirror.errors import ConfigError, ListenError
from peili.mirror.metrics.counters import LOCAL, OPS, PEER
from peili.mirror.mirror import Mirror
from peili.mirror.server.acceptor import Acceptor
from peili.mirror.server.listening import Address, address_of, bind, urls_of
from peili.mirror.server.protocol import LINGER, protocol_factory
from peili.mirror.support.tasks import finish
from peili.mirror.tls.from_files import refreshing
from peili.mirror.tls.local_certificate import LocalCertificate

_KEEP_ALIVE = 30
"""Seconds for which an idle connection is kept. Our own client keeps it for a shorter time, and so closes it first."""
_SHUTDOWN = 5
"""Seconds after which uvicorn stops waiting for responses. Usually none is in progress: the mirror was drained."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What `serve` listens on.

    Attributes:
        local_addresses: ``host:port`` of each bound address of the local door.
        peer_addresses: ``host:port`` of each bound address of the peer door.
        ops_addresses: ``host:port`` of each bound address of `Mirror.ops`: those of the local door if it has no others.
    """

    local_addresses: tuple[str, ...]
    peer_addresses: tuple[str, ...]
    ops_addresses: tuple[str, ...]


@asynccontextmanager
async def serve(
    mirror: Mirror,
    *,
    local: Address | Sequence[Address],
    peer: Address | Sequence[Address] | None = None,
    ops: Address | Sequence[Address] | None = None,
    local_ssl: ssl.SSLContext | LocalCertificate | None = None,
    peer_ssl: ssl.SSLContext | None = None,
    advertise: str | Sequence[str] | None = None,
) -> AsyncGenerator[Serving]:
    """Serve the doors of a mirror, which must be entered: ``async with mirror, serve(mirror, …)``.

    It handles no signals and never exits the process. On exit, it first drains the mirror. Transfers that take longer
    than ``limits.drain_timeout`` seconds are cut off. If the mirror stays entered, it may be served again, and is then
    announced again.

    Args:
        mirror: The mirror.
        local: Where to serve the local door. A socket is duplicated; the caller still owns it.
        peer: Where to serve the peer door. None means that it is not served.
        ops: Where to serve `Mirror.ops`. None means at the addresses of the local door, for its clients and this host.
        local_ssl: Serves the local door with TLS. It may demand client certificates. See also `LocalCertificate`.
        peer_ssl: Serves the peer door with TLS. Not for a mirror with `peer_tls`, which is used instead.
        advertise: The URLs at which other hosts reach the peer door. By default they are detected.

    Raises:
        ListenError: An address can't be listened on.
        ConfigError: An address is malformed, or both `peer_ssl` and the mirror's `peer_tls` are given.
    """
    context = _peer_context(mirror, peer_ssl)
    addresses = ((local, "127.0.0.1"), (peer, "::"), (ops, "127.0.0.1"))
    with _listening(addresses, mirror.limits.reader_timeout) as (local_sockets, peer_sockets, ops_sockets):
        local_app = mirror.local if ops_sockets else OpsMiddleware(mirror.local, mirror.local_ops)
        doors = [(_DoorServer(LOCAL, local_app, mirror, _local_context(local_ssl)), local_sockets)]
        if peer_sockets:
            doors.append((_DoorServer(PEER, mirror.peer, mirror, context), peer_sockets))
            mirror.listens_at(_urls(advertise) or urls_of(peer_sockets, "https" if context else "http"))
        if ops_sockets:
            doors.append((_DoorServer(OPS, mirror.own_ops, mirror), ops_sockets))
        refreshed = local_ssl if isinstance(local_ssl, LocalCertificate) else None
        async with contextlib.AsyncExitStack() as stack, refreshing(refreshed, mirror.log):
            for door, sockets in doors:
                await stack.enter_async_context(door.listening(sockets))
            try:
                await mirror.resume()
                yield Serving(*map(_addresses, (local_sockets, peer_sockets, ops_sockets or local_sockets)))
            finally:
                await finish(mirror.drain(mirror.limits.drain_timeout), sys.exception())
                for door, _ in doors:  # before the first one is awaited, so that all stop at the same time
                    door.should_exit = True


@contextlib.contextmanager
def _listening(
    doors: Sequence[tuple[Address | Sequence[Address] | None, str]], reader_timeout: float
) -> Generator[list[list[socket.socket]]]:
    """Yield the listening sockets of each door. A door is its addresses, and the host of an address without one."""
    with contextlib.ExitStack() as stack:
        found: list[list[socket.socket]] = []
        for addresses, any_host in doors:
            bound = [] if addresses is None else bind(addresses, any_host=any_host, reader_timeout=reader_timeout)
            found.append([stack.enter_context(each) for each in bound])
        yield found


def _local_context(local_ssl: ssl.SSLContext | LocalCertificate | None) -> Callable[[], ssl.SSLContext] | None:
    """Return a function that returns the context of a new connection; None for a local door without TLS."""
    return (lambda: local_ssl.current) if isinstance(local_ssl, LocalCertificate) else _always(local_ssl)


def _peer_context(mirror: Mirror, peer_ssl: ssl.SSLContext | None) -> Callable[[], ssl.SSLContext] | None:
    """Return a function that returns the context of a new connection; None for a peer door without TLS."""
    peer_tls = mirror.peer_tls
    if peer_tls is not None:
        if peer_ssl is not None:
            raise ConfigError("peer_ssl", "either this, or `peer_tls` of the mirror, not both")
        return lambda: peer_tls.contexts().server
    return _always(peer_ssl)


def _urls(advertise: str | Sequence[str] | None) -> Sequence[str]:
    return [advertise] if isinstance(advertise, str) else advertise or ()


def _addresses(sockets: Iterable[socket.socket]) -> tuple[str, ...]:
    return tuple(map(address_of, sockets))


def _always(context: ssl.SSLContext | None) -> Callable[[], ssl.SSLContext] | None:
    return None if context is None else lambda: context


class _DoorServer(uvicorn.Server):
    """A uvicorn server that leaves signals to the process and accepts connections with our `Acceptor`."""

    def __init__(
        self, door: str, app: ASGIApp, mirror: Mirror, tls: Callable[[], ssl.SSLContext] | None = None
    ) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # with X-Forwarded-For, anyone could appear to be on loopback
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_SHUTDOWN,
            ws="none",
        )
        config.load()
        limits, limited = mirror.limits, mirror.metrics.limited.add
        self._create_protocol = protocol_factory(config, limits, limited)
        super().__init__(config)
        self._acceptor = Acceptor(
            door,
            lambda slot: self._create_protocol(slot, self.server_state, self.lifespan.state),
            limits,
            limited,
            mirror.log,
            tls=tls,
        )
        self._started = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept. Overrides the method of uvicorn, which would create asyncio servers."""
        await self.lifespan.startup()
        self.servers = []
        self._acceptor.listen(sockets or [])
        self.started = True
        self._started.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop to accept, then do what uvicorn does."""
        self._acceptor.close()
        await super().shutdown(sockets)
        await self._acceptor.wait_closed()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Do nothing: signals belong to the process."""
        yield

    @asynccontextmanager
    async def listening(self, sockets: list[socket.socket]) -> AsyncGenerator[None]:
        """Serve on `sockets`, which uvicorn closes.

        Raises:
            ListenError: The server ended before it listened.
        """
        task = asyncio.create_task(self.serve(sockets))
        started = asyncio.create_task(self._started.wait())
        try:
            await asyncio.wait({task, started}, return_when=asyncio.FIRST_COMPLETED)
            if not self._started.is_set():
                task.result()
                raise ListenError("the server ended before it listened")
            yield
        finally:
            started.cancel()
            self.should_exit = True
            await finish(self._wait_stopped({task, started}), sys.exception())

    async def _wait_stopped(self, tasks: set[asyncio.Task[Any]]) -> None:
        abort = asyncio.get_running_loop().call_later(LINGER, self._abort)
        try:
            await asyncio.wait(tasks)
        finally:
            abort.cancel()

    def _abort(self) -> None:
        """Close the connections of clients that do not read the end of their response."""
        for each in tuple(self.server_state.connections):
            each.transport.abort()
