"""The mirror under test on a real socket, with routers and a runtime for the tests."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tests.support.plain_http import plain_client
from typing_extensions import override

from peili.mirror import (
    Digest,
    Feed,
    Holder,
    Key,
    Lease,
    Limits,
    Mirror,
    Peer,
    Router,
    Store,
    Upstream,
    Wait,
    Want,
    serve,
)
from peili.stores.memory import MemoryStore

KIB, MIB = 1024, 1024 * 1024
SHORT: dict[str, Any] = {
    "connect_timeout": 5.0,
    "first_byte_timeout": 1.5,
    "hedge_delay": 5.0,  # so that other tests do not ask a second holder on a busy machine
    "stall_timeout": 1.2,
    "min_rate": 16 * KIB,
    "rate_window": 0.5,
    "wait_timeout": 20.0,
    "verify_ahead": 64 * KIB,
    "drain_timeout": 0.5,
}
LARGE = 600 * KIB
"""More than `verify_ahead`: streamed."""
SMALL = 20 * KIB
"""Less than `verify_ahead`: collected."""
NEVER = 600.0
"""Seconds of a limit that is longer than any test: if something ends, it did not wait for this limit."""
DATA_PATHS: dict[str, dict[str, Any]] = {
    "hashed": {"verify": True},
    "spliced": {"verify": False},
    "hashed, messages": {"verify": True, "direct": False},
    "untouched, messages": {"verify": False, "direct": False},
}
"""How large content is moved to the runtime, as arguments of `pulling`."""


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


class FixedRouter(Router):
    """Returns the given holders, always in that order."""

    def __init__(self, *holders: Holder) -> None:
        self.holders = holders
        self.wants: list[Want] = []

    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        for holder in self.holders:
            yield holder

    @override
    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        self.wants.append(want)
        return await super().acquire(want)

    @override
    def peers(self) -> list[Peer]:
        return [holder.peer for holder in self.holders]


class RecordingLease(Lease):
    """Records its calls."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.reasons: list[str] = []

    @override
    def progress(self, offset: int) -> None:
        assert not self.reasons, "progress after the release"
        self.offsets.append(offset)

    @override
    async def release(self, reason: str) -> None:
        self.reasons.append(reason)
        await asyncio.sleep(0.01)  # like a lease that sends a message


Advice: TypeAlias = Feed | Wait | Upstream | Exception


class AdvisingRouter(Router):
    """Returns the given advice in turn, and then the last one for ever."""

    def __init__(self, *advice: Advice | Callable[[], Advice]) -> None:
        self._advice = list(advice)
        self.wants: list[Want] = []

    @override
    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        self.wants.append(want)
        advice = self._advice.pop(0) if len(self._advice) > 1 else self._advice[0]
        if callable(advice):
            advice = advice()
        if isinstance(advice, Exception):
            raise advice
        return advice

    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        return
        yield

    @override
    def peers(self) -> Sequence[Peer]:
        return ()


@dataclass
class PullResult:
    """What the runtime received. `whole`: the body ended where it had to."""

    status: int
    headers: httpx.Headers
    body: bytes
    whole: bool


@dataclass
class Host:
    """A host whose runtime pulls. Its mirror is served at `address`."""

    mirror: Mirror
    address: tuple[str, int]
    client: httpx.AsyncClient
    connections: list[socket.socket] = field(default_factory=list[socket.socket])

    async def get(
        self, digest: Digest, byte_range: str | None = None, *, kind: str = "blobs", method: str = "GET"
    ) -> PullResult:
        """Request content, and read the response."""
        headers = {"Range": byte_range} if byte_range else {}
        body, whole = bytearray(), True
        async with self.client.stream(method, path_of(digest, kind), headers=headers) as response:
            try:
                async for piece in response.aiter_raw():
                    body += piece
            except (httpx.RemoteProtocolError, httpx.ReadError):
                whole = False
        return PullResult(response.status_code, response.headers, bytes(body), whole)

    async def ask(self, digest: Digest) -> socket.socket:
        """Request a blob on a raw socket with small buffers, and do not read the response."""
        connection = socket.socket()
        self.connections.append(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, self.address)
        await loop.sock_sendall(connection, f"GET {path_of(digest)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return connection


def manifest_with(digest: str, size: object) -> bytes:
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size}
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest.of(b"{}"), "size": 2}
    return json.dumps({"schemaVersion": 2, "config": config, "layers": [layer]}).encode()


def path_of(digest: Digest, kind: str = "blobs") -> str:
    return f"/v2/library/demo/{kind}/{digest}?ns=docker.io"


def _wrapped(app: ASGIApp) -> ASGIApp:
    """Add a middleware, so that `send` is not the server's own."""

    async def wrapper(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            await send(message)

        await app(scope, receive, sending)

    return wrapper


@asynccontextmanager
async def pulling(
    router: Router | Iterable[Holder],
    *,
    store: Store | None = None,
    verify: bool = True,
    direct: bool = True,
    client_ssl: ssl.SSLContext | None = None,
    **limits: Any,
) -> AsyncGenerator[Host]:
    """Serve a host whose store is empty, or `store`.

    Args:
        router: A router, or the holders of a `FixedRouter`.
        store: The host's store.
        verify: As for `Mirror`.
        direct: Whether bodies may go to the runtime's socket directly. Otherwise they are ASGI messages.
        client_ssl: As for `Mirror`.
        limits: Replace those of `SHORT`.
    """
    if not isinstance(router, Router):
        router = FixedRouter(*router)
    all_limits = Limits(**{**SHORT, **limits})
    mirror = Mirror(store or MemoryStore(), router, verify=verify, client_ssl=client_ssl, limits=all_limits)
    if not direct:
        mirror.local = _wrapped(mirror.local)
    async with mirror, serve(mirror, local="127.0.0.1:0") as serving:
        name, port = serving.local_addresses[0].rsplit(":", 1)
        async with plain_client(base_url=f"http://{name}:{port}", trust_env=False, timeout=90) as client:
            host = Host(mirror, (name, int(port)), client)
            try:
                yield host
            finally:
                for connection in host.connections:
                    connection.close()
