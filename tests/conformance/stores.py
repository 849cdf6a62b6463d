"""The subjects of the conformance kit for the built-in stores."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from typing_extensions import override

from peili.mirror import Digest, Reference, Selection, Store
from peili.mirror.content.intact_store import IntactStore
from peili.mirror.content.selected_store import SelectedStore
from peili.mirror.oci.references import OCI_MANIFEST
from peili.mirror.testing import Arrival, StoreSubject
from peili.stores.memory import MemoryIngest, MemoryStore
from peili.stores.oci_layout import OciLayoutStore


class MemoryArrival(Arrival):
    def __init__(self, ingest: MemoryIngest) -> None:
        self._ingest = ingest

    @override
    async def write(self, data: bytes) -> None:
        self._ingest.write(data)

    @override
    async def commit(self) -> None:
        self._ingest.commit()

    @override
    async def abort(self) -> None:
        self._ingest.abort()


class MemorySubject(StoreSubject):
    """A memory store, or `store`, which serves the content of `backend`."""

    def __init__(self, backend: MemoryStore, store: Store | None = None) -> None:
        self.backend = backend
        self.store = store if store is not None else backend

    @override
    async def add(self, data: bytes, reference: Reference | None = None) -> None:
        descriptor = self.backend.add(data)
        if reference is not None:
            self.backend.tag(reference, descriptor)

    @override
    async def remove(self, digest: Digest) -> None:
        self.backend.remove(digest)

    @override
    async def begin(self, data: bytes) -> Arrival | None:
        return MemoryArrival(self.backend.begin(Digest.of(data), len(data)))


@asynccontextmanager
async def selected_store() -> AsyncGenerator[StoreSubject]:
    """Yield a store for which an image is excluded, but none of the kit."""
    backend = MemoryStore()
    store = SelectedStore(backend, Selection(exclude=["^excluded[.]example/"]))
    subject = MemorySubject(backend, store)
    await subject.add(b"of an excluded image", Reference("excluded.example", "demo", "v1"))
    yield subject


@asynccontextmanager
async def intact_store() -> AsyncGenerator[StoreSubject]:
    """Yield a store that has damaged content, but none of the kit."""
    backend = MemoryStore()
    store = IntactStore(backend)
    store.note_damaged(backend.add(b"damaged").digest)
    yield MemorySubject(backend, store)


@asynccontextmanager
async def memory_store() -> AsyncGenerator[StoreSubject]:
    yield MemorySubject(MemoryStore())


class LayoutArrival(Arrival):
    """A blob that is written to the file of an ingest, and moved to its place in `blobs` at the end."""

    def __init__(self, ingest: Path, blob: Path) -> None:
        ingest.parent.mkdir(parents=True, exist_ok=True)
        ingest.touch()
        self._ingest = ingest
        self._blob = blob

    @override
    async def write(self, data: bytes) -> None:
        with self._ingest.open("ab") as file:
            file.write(data)

    @override
    async def commit(self) -> None:
        self._ingest.rename(self._blob)

    @override
    async def abort(self) -> None:
        self._ingest.unlink()


class LayoutSubject(StoreSubject):
    """An OCI layout in the directory `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blobs = path / "blobs" / "sha256"
        self.blobs.mkdir(parents=True)
        self._write_index([])
        self.store = OciLayoutStore(path)

    @override
    async def add(self, data: bytes, reference: Reference | None = None) -> None:
        digest = Digest.of(data)
        unfinished = self.blobs / "unfinished"
        unfinished.write_bytes(data)
        os.utime(unfinished, (0, 0))  # written long ago
        unfinished.rename(self.blobs / digest.encoded)
        if reference is not None:
            name = {"org.opencontainers.image.ref.name": str(reference)}
            entry = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(data), "annotations": name}
            self._write_index([*self._index(), entry])

    @override
    async def remove(self, digest: Digest) -> None:
        self._write_index([entry for entry in self._index() if entry["digest"] != digest])
        (self.blobs / digest.encoded).unlink()

    @override
    async def begin(self, data: bytes) -> Arrival | None:
        encoded = Digest.of(data).encoded
        return LayoutArrival(self.path / "ingest" / "sha256" / f"{encoded}.{len(data)}", self.blobs / encoded)

    @override
    async def lose(self) -> bool:
        self.path.rename(self.path.with_name("lost"))
        return True

    @override
    async def restore(self) -> None:
        self.path.with_name("lost").rename(self.path)

    def _index(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = json.loads((self.path / "index.json").read_bytes())["manifests"]
        return entries

    def _write_index(self, entries: list[dict[str, Any]]) -> None:
        unfinished = self.path / "unfinished.json"
        unfinished.write_text(json.dumps({"schemaVersion": 2, "manifests": entries}), encoding="utf-8")
        unfinished.rename(self.path / "index.json")


@asynccontextmanager
async def oci_layout_store() -> AsyncGenerator[StoreSubject]:
    with tempfile.TemporaryDirectory() as folder:
        yield LayoutSubject(Path(folder) / "layout")
