"""A host whose doors are served on real sockets, and content that tells whether it was freed."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from typing_extensions import override

from peili.mirror import Content, Descriptor, Digest, Mirror, Serving, serve
from peili.mirror.oci.media_types import OCTET_STREAM
from peili.mirror.resolvers import LocalResolver
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

ZEROS = Digest.of(b"zeros")  # not its real digest, which nobody checks here
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
    """Has `ZEROS` besides what it is given. `opened` is all that it opened of it."""

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


class Served:
    """A mirror with a store of zeros, and where its doors are."""

    def __init__(self, mirror: Mirror, store: ZerosStore, serving: Serving) -> None:
        self.mirror = mirror
        self.store = store
        self.serving = serving

    def address(self, door: str) -> str:
        """``host:port`` of a door."""
        addresses: tuple[str, ...] = getattr(self.serving, f"{door}_addresses")
        return addresses[0]

    def url(self, door: str) -> str:
        """Where a door is."""
        return f"http://{self.address(door)}"


@asynccontextmanager
async def served(*, peer_ssl: ssl.SSLContext | None = None, **options: Any) -> AsyncGenerator[Served]:
    """A mirror that is entered and served."""
    store = ZerosStore()
    given: dict[str, Any] = {"identity": "this-host", **options}
    mirror = Mirror(store, MemoryRouter(), LocalResolver(), **given)
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0", peer_ssl=peer_ssl) as serving:
        yield Served(mirror, store, serving)


@contextmanager
def asking(address: str, path: str, *, buffer: int = 4096) -> Generator[socket.socket]:
    """A connection that has asked for `path` and takes nothing by itself; it has room for `buffer` bytes."""
    host, _, port = address.rpartition(":")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.connect((host, int(port)))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: door.example\r\n\r\n".encode())
        sock.setblocking(False)
        yield sock
