"""The demonstration's hosts: a store, a router, a mirror and two sockets each, in one process on loopback."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

from peili.adapters.demo.cable import Cable
from peili.adapters.demo.ledger import Ledger, LedgerRouter
from peili.mirror import Descriptor, Digest, Have, Limits, Mirror, Peer, Plugins, serve
from peili.mirror.testing.images import CONTAINERD_NAME

_LIMITS = Limits(drain_timeout=0.001)  # a host that goes away here goes as a crashed one does


class Host:
    """One host, with an empty OCI image layout below `directory`, and ports that the kernel picked.

    `registry` is what a client takes for a registry; `as_peer` is how the other hosts know it. One that `lies` does not
    check its own files.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.lies = False
        self.layout = directory / name
        (self.layout / "blobs" / "sha256").mkdir(parents=True)
        (self.layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self._write_index([])
        self.ledger = Ledger()
        self._sockets = tuple(socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        registry, door = (each.getsockname()[1] for each in self._sockets)
        self.registry = f"127.0.0.1:{registry}"
        self.cable = Cable(door)
        self.as_peer = Peer(name, (f"http://{self.cable.address}",))
        self._running = AsyncExitStack()

    async def join(self, members: Sequence[Host], log: logging.Logger) -> None:
        """Start its mirror. Returns when it is ready."""
        plugins = Plugins()
        self.store = plugins.store("oci-layout", {"path": str(self.layout), "verify": not self.lies})
        mirror = Mirror(
            self.store,
            LedgerRouter([member.as_peer for member in members], self.ledger),
            plugins.resolver("peers", {}),
            identity=self.name,
            limits=_LIMITS,
            log=log.getChild(self.name),
        )
        self._running.push_async_callback(self.cable.aclose)
        local, peer = self._sockets
        with local, peer:  # the server has its own of them; these would go on taking connections when it has left
            await self._running.enter_async_context(mirror)
            await self._running.enter_async_context(serve(mirror, local=local, peer=peer))
        self.cable.lay()
        await mirror.wait_ready(10)

    async def leave(self) -> None:
        """End it, cutting off whoever is being served. Idempotent."""
        await self._running.aclose()

    async def keep(self, got: Path, manifest: Descriptor, name: str) -> None:
        """Put what a client got into the store, as a runtime does. Returns when the store knows it."""
        await asyncio.to_thread(self._store, got, manifest, name)
        async with asyncio.timeout(10), aclosing(self.store.watch()) as watching:
            async for events in watching:
                if any(isinstance(event, Have) and event.key == manifest.digest for event in events):
                    return

    def _store(self, got: Path, manifest: Descriptor, name: str) -> None:
        for blob in got.iterdir():
            blob.rename(self.layout / "blobs" / "sha256" / Digest(blob.name).encoded)
        entry = {"mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size}
        self._write_index([{**entry, "annotations": {CONTAINERD_NAME: name}}])

    def _write_index(self, manifests: Sequence[Mapping[str, Any]]) -> None:
        new = self.layout / "index.json.new"
        new.write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
        new.replace(self.layout / "index.json")
