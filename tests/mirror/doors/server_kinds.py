"""The kinds of servers that can serve the doors of a mirror, and a store of files for them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount
from starlette.types import ASGIApp
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Content, Descriptor, Digest, Limits, Mirror, http_protocol, serve
from peili.mirror.content.files import FileContent, open_regular
from peili.mirror.oci.references import OCTET_STREAM
from peili.mirror.resolvers import LocalResolver
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

FIRST = 1
"""Bytes that a door reads before a response starts, to be sure that the content is available."""


class TrackedFile(FileContent):
    """A file that records how many bytes were read through Python, and when it was closed."""

    def __init__(self, path: Path) -> None:
        super().__init__(open_regular(path), frozen=True)
        self.read = 0
        self.closed = asyncio.Event()

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        count = await super().readinto(offset, buffer)
        self.read += count
        return count

    @override
    async def aclose(self) -> None:
        await super().aclose()
        self.closed.set()


class FileStore(MemoryStore):
    """A memory store that also has files. `opened` is every file that it opened."""

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[Digest, Path] = {}
        self.opened: list[TrackedFile] = []

    def add_file(self, path: Path) -> str:
        """Add the file at `path`. Return its path at a door. Its digest is not the real one, which nothing checks."""
        digest = Digest.of(str(path).encode())
        self._files[digest] = path
        return f"/v2/registry.example/demo/blobs/{digest}"

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        if path := self._files.get(digest):
            return Descriptor(OCTET_STREAM, digest, path.stat().st_size)
        return await super().describe(digest)

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        if (path := self._files.get(digest)) is None:
            return await super().open(digest, partial=partial)
        self.opened.append(TrackedFile(path))
        return self.opened[-1]


@dataclass
class Host:
    """A mirror that is served at `address`. `shut_down` ends the server as its owner would, and waits for the end."""

    mirror: Mirror
    store: FileStore
    address: str
    shut_down: Callable[[], Any]


Served = AbstractAsyncContextManager[tuple[str, Callable[[], Any]]]


@dataclass(frozen=True)
class ServerKind:
    """One kind of server.

    Attributes:
        bypasses_python: Whether the kernel sends the bytes of files.
        is_ours: Whether the server is `serve`.
    """

    name: str
    serve: Callable[[Mirror], Served]
    bypasses_python: bool = False
    is_ours: bool = False
    uvloop: bool = False

    def __str__(self) -> str:
        return self.name

    @asynccontextmanager
    async def host(self, **limits: Any) -> AsyncGenerator[Host]:
        store = FileStore()
        mirror = Mirror(store, MemoryRouter(), LocalResolver(), local_hosts=["*"], limits=Limits(**limits))
        async with mirror, self.serve(mirror) as (address, shut_down):
            yield Host(mirror, store, address, shut_down)


@asynccontextmanager
async def _by_serve(mirror: Mirror) -> AsyncGenerator[tuple[str, Callable[[], Any]]]:
    serving = serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0")
    addresses = await serving.__aenter__()
    is_shut_down = False

    async def shut_down() -> None:
        nonlocal is_shut_down
        if not is_shut_down:
            is_shut_down = True
            await serving.__aexit__(None, None, None)

    try:
        yield addresses.local_addresses[0], shut_down
    finally:
        await shut_down()


def on_uvicorn(app: Callable[[Mirror], ASGIApp] | None = None, **config: Any) -> Callable[[Mirror], Served]:
    """Return a function that serves the local door, or `app` around it, by a uvicorn of the host agent."""

    @asynccontextmanager
    async def serving(mirror: Mirror) -> AsyncGenerator[tuple[str, Callable[[], Any]]]:
        served_app = app(mirror) if app else mirror.local
        server = uvicorn.Server(uvicorn.Config(served_app, lifespan="off", log_config=None, ws="none", **config))
        with socket.create_server(("127.0.0.1", 0)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            running = asyncio.create_task(server.serve([sock]))
            await until(lambda: server.started)

            async def shut_down() -> None:
                server.should_exit = True
                await running

            try:
                yield f"127.0.0.1:{sock.getsockname()[1]}", shut_down
            finally:
                await mirror.drain(0.1)
                await shut_down()

    return serving


def _behind_gzip(mirror: Mirror) -> Starlette:
    return Starlette(routes=[Mount("/v2", mirror.local)], middleware=[Middleware(GZipMiddleware, minimum_size=10)])


SERVER_KINDS = (
    ServerKind("serve on asyncio", _by_serve, bypasses_python=True, is_ours=True),
    ServerKind("serve on uvloop", _by_serve, bypasses_python=True, is_ours=True, uvloop=True),
    ServerKind("uvicorn with our protocol", on_uvicorn(http=http_protocol()), bypasses_python=True),
    ServerKind("uvicorn with our protocol behind middleware", on_uvicorn(_behind_gzip, http=http_protocol())),
    ServerKind("uvicorn on httptools", on_uvicorn(http="httptools")),
    ServerKind("uvicorn on h11", on_uvicorn(http="h11")),
)
