"""The hosts of the demonstration, all in one process on loopback.

Each host has a store, a router, a mirror and two sockets. A proxy in front of its peer door can fail at a given byte,
and its router records which peer sent which bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from peili.mirror import (
    Descriptor,
    Digest,
    Feed,
    Have,
    Holder,
    Key,
    Lease,
    Limits,
    Mirror,
    Peer,
    Plugins,
    Upstream,
    Wait,
    Want,
    serve,
)
from peili.routers.static import StaticRouter

_LIMITS = Limits(
    drain_timeout=0.001,  # a host that stops does not drain: it behaves like a host that crashed
    lookup_ttl=0.05,  # `DemoHost.find` looks often
)
_NAME_ANNOTATION = "io.containerd.image.name"  # the annotation by which a layout names an image in full
_CHUNK = 1 << 18
"""Bytes that the proxy forwards at once."""


class DemoHost:
    """A host with an empty OCI image layout, and with ports that the kernel chose.

    Args:
        name: Its identity.
        directory: Where it creates its files.

    Attributes:
        verifies: Whether its store checks files against their digests.
        layout: The directory of the OCI image layout.
        registry: ``host:port`` of its local door.
        peer: What the other hosts know about it.
        proxy: The proxy in front of its peer door.
        transfers: Which peer sent it which bytes.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.verifies = True
        self.layout = directory / name
        (self.layout / "blobs" / "sha256").mkdir(parents=True)
        (self.layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self._write_index([])
        self.transfers = TransferRecord()
        self._sockets = tuple(socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        local_port, peer_port = (each.getsockname()[1] for each in self._sockets)
        self.registry = f"127.0.0.1:{local_port}"
        self.proxy = PeerDoorProxy(peer_port)
        self.peer = Peer(name, (f"http://{self.proxy.address}",))
        self._running = AsyncExitStack()

    async def start(self, members: Sequence[DemoHost], log: logging.Logger) -> None:
        """Start the mirror, and return when it is ready."""
        plugins = Plugins()
        self.store = plugins.store("oci-layout", {"path": str(self.layout), "verify": self.verifies})
        self.router = RecordingRouter([member.peer for member in members], self.transfers)
        mirror = Mirror(
            self.store,
            self.router,
            plugins.resolver("peers", {}),
            identity=self.name,
            limits=_LIMITS,
            log=log.getChild(self.name),
        )
        self._running.push_async_callback(self.proxy.aclose)
        local, peer = self._sockets
        with local, peer:  # the server has duplicates; an open one would accept connections after the server stopped
            await self._running.enter_async_context(mirror)
            await self._running.enter_async_context(serve(mirror, local=local, peer=peer))
        self.proxy.start()
        await mirror.wait_ready(10)

    async def stop(self) -> None:
        """Stop the mirror, and cut the connections of its clients. Idempotent."""
        await self._running.aclose()

    async def add_image(self, pulled: Path, manifest: Descriptor, name: str) -> None:
        """Move a pulled image into the store, as a runtime does, and return when the store knows it."""
        await asyncio.to_thread(self._move_blobs, pulled, manifest, name)
        async with asyncio.timeout(10), aclosing(self.store.watch()) as batches:
            async for events in batches:
                if any(isinstance(event, Have) and event.key == manifest.digest for event in events):
                    return

    async def find(self, digest: Digest, holders: int) -> None:
        """Return when so many peers are known to have a blob."""
        async with asyncio.timeout(10):
            while await self._count_holders(digest) < holders:  # noqa: ASYNC110 - a home learns it without an event
                await asyncio.sleep(0.05)

    async def _count_holders(self, digest: Digest) -> int:
        async with aclosing(self.router.lookup(digest)) as found:
            return len([holder async for holder in found])

    def _move_blobs(self, pulled: Path, manifest: Descriptor, name: str) -> None:
        for blob in pulled.iterdir():
            blob.rename(self.layout / "blobs" / "sha256" / Digest(blob.name).encoded)
        entry = {"mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size}
        self._write_index([{**entry, "annotations": {_NAME_ANNOTATION: name}}])

    def _write_index(self, manifests: Sequence[Mapping[str, Any]]) -> None:
        new = self.layout / "index.json.new"
        new.write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
        new.replace(self.layout / "index.json")


class PeerDoorProxy:
    """Forwards TCP connections to a port on loopback, and can fail after a given number of bytes.

    Stopping the server is not that exact: bytes that it has handed to the kernel still arrive.

    Attributes:
        address: ``host:port`` on which it listens.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._remaining: float = math.inf
        self._on_fail: Callable[[], None] = lambda: None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Accept and forward connections."""
        self._task = asyncio.create_task(self._accept())

    def fail_after(self, count: int, on_fail: Callable[[], None]) -> None:
        """Forward `count` more bytes of responses, then close all connections and call `on_fail`."""
        self._remaining, self._on_fail = count, on_fail

    async def aclose(self) -> None:
        """Close all connections and stop listening. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        with self._listener:
            async with asyncio.TaskGroup() as connections:
                while True:
                    client, _ = await loop.sock_accept(self._listener)
                    connections.create_task(self._connect(client))

    async def _connect(self, client: socket.socket) -> None:
        """Forward between `client` and the target until one of them ends its stream."""
        with client, socket.socket() as server, contextlib.suppress(ConnectionError):
            server.setblocking(False)
            await asyncio.get_running_loop().sock_connect(server, self._target)
            directions = [
                asyncio.create_task(self._forward_requests(client, server)),
                asyncio.create_task(self._forward_responses(server, client)),
            ]
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)

    async def _forward_requests(self, client: socket.socket, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(client, _CHUNK):
            await loop.sock_sendall(server, data)

    async def _forward_responses(self, server: socket.socket, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(server, _CHUNK):
            data = data[: int(min(len(data), self._remaining))]  # other connections count too
            if not data:
                return
            self._remaining -= len(data)
            await loop.sock_sendall(client, data)
            if not self._remaining and self._task is not None:
                self._task.cancel()
                self._on_fail()
                return


class TransferRecord:
    """Records which peer sent which bytes to one host."""

    def __init__(self) -> None:
        self._starts: dict[Key, dict[str, int]] = {}
        self._callbacks: dict[Key, Callable[[str], None]] = {}

    def add(self, key: Key, peer: str, start: int) -> None:
        """Record that `peer` sends `key` from byte `start` on."""
        self._starts.setdefault(key, {})[peer] = start

    def bytes_by_peer(self, key: Key, size: int) -> dict[str, int]:
        """Return the number of bytes of `key` that each peer sent, in order. The content has `size` bytes."""
        starts = self._starts.get(key, {})
        ends = [*starts.values(), size][1:]
        return {peer: end - start for (peer, start), end in zip(starts.items(), ends, strict=True)}

    def on_start(self, key: Key, callback: Callable[[str], None]) -> None:
        """Call `callback` once, with the id of the first peer that is chosen for `key`."""
        self._callbacks[key] = callback

    def choose(self, key: Key, peer: str) -> None:
        """Record that `peer` is chosen for `key`."""
        if callback := self._callbacks.pop(key, None):
            callback(peer)


class _RecordingLease(Lease):
    """Records the progress, and passes everything on to the router's own lease."""

    def __init__(self, transfers: TransferRecord, want: Want, peer: str, lease: Lease) -> None:
        self._transfers = transfers
        self._want = want
        self._peer = peer
        self._lease = lease

    @override
    def use(self, holder: Holder) -> None:
        self._lease.use(holder)

    @override
    def progress(self, offset: int) -> None:
        self._transfers.add(self._want.key, self._peer, self._want.offset)
        self._lease.progress(offset)

    @override
    async def superseded(self) -> None:
        await self._lease.superseded()

    @override
    async def release(self, reason: str) -> None:
        await self._lease.release(reason)


class RecordingRouter(StaticRouter):
    """A static router that returns one holder at a time, and so knows which peer sent which bytes."""

    def __init__(self, peers: Iterable[Peer], transfers: TransferRecord) -> None:
        super().__init__(peers)
        self._transfers = transfers

    @override
    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        advice = await super().acquire(want)
        if not isinstance(advice, Feed):
            return advice
        first = advice.holders[0]
        if want.accepts_in_flight:  # not if the mirror only asks whether the peer still has it
            self._transfers.choose(want.key, first.peer.id)
        lease = _RecordingLease(self._transfers, want, first.peer.id, advice.lease)
        return replace(advice, holders=(first,), lease=lease)
