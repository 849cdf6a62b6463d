"""A host whose doors are served on real sockets, and content that records whether it was closed."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from typing_extensions import override

from peili.mirror import Content, Descriptor, Digest, Mirror, Serving, serve
from peili.mirror.oci.references import OCTET_STREAM
from peili.mirror.resolvers import LocalResolver
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

ZEROS = Digest.of(b"zeros")  # not its real digest; nothing checks that here
SIZE = 1 << 30
ZEROS_PATH = f"/v2/registry.example/demo/blobs/{ZEROS}"


class Zeros(Content):
    """1 GiB that takes no memory."""

    def __init__(self) -> None:
        self.size = self.available = SIZE
        self.complete = True
        self.closed = asyncio.Event()

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        return max(0, min(len(buffer), SIZE - offset))

    @override
    async def wait(self, past: int) -> int:
        return SIZE

    @override
    async def aclose(self) -> None:
        self.closed.set()


class ZerosStore(MemoryStore):
    """A memory store that also has `ZEROS`. `opened` is every `Zeros` that it opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[Zeros] = []

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        if digest == ZEROS:
            return Descriptor(OCTET_STREAM, ZEROS, SIZE)
        return await super().describe(digest)

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        if digest != ZEROS:
            return await super().open(digest, partial=partial)
        self.opened.append(Zeros())
        return self.opened[-1]


class ServedHost:
    """A mirror with a store of zeros, and the addresses of its doors."""

    def __init__(self, mirror: Mirror, store: ZerosStore, serving: Serving) -> None:
        self.mirror = mirror
        self.store = store
        self.serving = serving

    def address(self, door: str) -> str:
        """Return ``host:port`` of a door."""
        addresses: tuple[str, ...] = getattr(self.serving, f"{door}_addresses")
        return addresses[0]

    def url(self, door: str) -> str:
        """Return the URL of a door."""
        return f"http://{self.address(door)}"


@asynccontextmanager
async def served_host(*, peer_ssl: ssl.SSLContext | None = None, **options: Any) -> AsyncGenerator[ServedHost]:
    """Yield a mirror that is running and served."""
    store = ZerosStore()
    all_options: dict[str, Any] = {"identity": "this-host", **options}
    mirror = Mirror(store, MemoryRouter(), LocalResolver(), **all_options)
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0", peer_ssl=peer_ssl) as serving:
        yield ServedHost(mirror, store, serving)


@contextmanager
def open_request(address: str, path: str, *, buffer: int = 4096) -> Generator[socket.socket]:
    """Yield a connection on which `path` was requested. It reads nothing by itself, and buffers `buffer` bytes."""
    host, _, port = address.rpartition(":")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.connect((host, int(port)))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        sock.setblocking(False)
        yield sock
