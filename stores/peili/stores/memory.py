"""A store in memory, for tests and demonstrations. It implements the whole interface, ingests included."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from typing_extensions import override

from peili.mirror import (
    Aborted,
    Broadcast,
    Content,
    Descriptor,
    Digest,
    Gone,
    Have,
    Inventory,
    Key,
    NotFound,
    Reference,
    Store,
    StoreEvent,
    detect_media_type,
)


class MemoryStore(Store):
    """Serves the content that the caller adds. Not thread-safe: use it only on the loop of the mirror that runs it."""

    def __init__(self) -> None:
        self._blobs: dict[Digest, _MemoryBlob] = {}
        self._ingests: dict[Digest, MemoryIngest] = {}
        self._tags: dict[Reference, Descriptor] = {}
        self._tagged: dict[Reference, float] = {}  # since when a tag means what it means
        self._inventory = Inventory()
        self._inventory.replace(())

    def add(self, data: bytes, *, algorithm: str = "sha256") -> Descriptor:
        """Add complete content. Returns its descriptor, with the media type that `data` states if it is a manifest."""
        descriptor = Descriptor(detect_media_type(data), Digest.of(data, algorithm), len(data))
        self._blobs[descriptor.digest] = _MemoryBlob(descriptor, data)
        self._publish(descriptor.digest)
        return descriptor

    def tag(self, reference: Reference, descriptor: Descriptor) -> None:
        """Let a tag point to complete content of this store. Raises ValueError if the content is not here."""
        if descriptor.digest not in self._blobs:
            raise ValueError(f"{descriptor.digest} is not here; add() it before it is tagged")
        if self._tags.get(reference) != descriptor:
            self._tagged[reference] = time.time()
        self._tags[reference] = descriptor
        self._publish(reference)

    def remove(self, key: Key) -> None:
        """Remove a tag, or complete content and all tags that point to it. Ignores an unknown key.

        Content that is open can still be read.
        """
        if isinstance(key, Reference):
            removed: list[Key] = [key]
        else:
            removed = [key, *(tag for tag, target in self._tags.items() if target.digest == key)]
        for each in removed:
            if isinstance(each, Reference):
                self._tags.pop(each, None)
                self._tagged.pop(each, None)
            else:
                self._blobs.pop(each, None)
        self._publish(*removed)

    def begin(self, digest: Digest, size: int | None = None) -> MemoryIngest:
        """Start an ingest of `digest`.

        Args:
            digest: The digest of the content.
            size: Its size in bytes, if known.

        Raises:
            ValueError: The store has the content, or an ingest of it.
        """
        if digest in self._blobs or digest in self._ingests:
            raise ValueError(f"{digest} is here, or is already an ingest")
        ingest = self._ingests[digest] = MemoryIngest(digest, size, self._publish, self._end_ingest)
        self._publish(digest)
        return ingest

    @override
    async def resolve(self, reference: Reference) -> Descriptor:
        try:
            return self._tags[reference]
        except KeyError:
            raise NotFound(f"{reference} is not here") from None

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        try:
            return self._blobs[digest].descriptor
        except KeyError:
            raise NotFound(f"{digest} is not here as complete content") from None

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        if blob := self._blobs.get(digest):
            return _MemoryContent(blob.data, blob.descriptor.size, complete=True)
        if partial and (ingest := self._ingests.get(digest)):
            return ingest.open()
        raise NotFound(f"{digest} is not here{'' if partial else ' as complete content'}")

    @override
    def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        return self._inventory.watch()

    @override
    def shows_in_flight(self) -> bool:
        return True

    @override
    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        return sorted(self._tags.items(), key=lambda item: item[0])

    @override
    async def tagged_at(self, reference: Reference) -> float | None:
        await self.resolve(reference)
        return self._tagged[reference]

    @override
    async def discard(self, digest: Digest) -> bool:
        ingest = self._ingests.get(digest)
        if ingest is not None:
            ingest.abort()
        return ingest is not None

    def _end_ingest(self, ingest: MemoryIngest, is_complete: bool) -> None:
        del self._ingests[ingest.digest]
        if is_complete:
            self.add(bytes(ingest.data), algorithm=ingest.digest.algorithm)
        else:
            self._publish(ingest.digest)

    def _publish(self, *keys: Key) -> None:
        self._inventory.update(self._state_of(key) for key in keys)

    def _state_of(self, key: Key) -> StoreEvent:
        if isinstance(key, Reference):
            return Have(key, target=self._tags[key].digest) if key in self._tags else Gone(key)
        if blob := self._blobs.get(key):
            return Have(key, blob.descriptor.size)
        if ingest := self._ingests.get(key):
            return Have(key, ingest.size, complete=False, available=len(ingest.data))
        return Gone(key)


class MemoryIngest:
    """Content that is still arriving in a `MemoryStore`, created by `MemoryStore.begin`.

    It ends with `commit` or `abort`.
    """

    def __init__(
        self,
        digest: Digest,
        size: int | None,
        on_write: Callable[[Digest], None],
        on_end: Callable[[MemoryIngest, bool], None],
    ) -> None:
        self._on_write = on_write
        self._on_end = on_end
        self._readers: list[_MemoryContent] = []
        self._has_ended = False
        self.digest = digest
        self.size = size
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        """Append bytes. Raises ValueError if the ingest has ended, or would become longer than `size`."""
        self._check_open()
        if self.size is not None and len(self.data) + len(data) > self.size:
            raise ValueError(f"{self.digest} would be longer than its {self.size} bytes")
        self.data += data
        self._update_readers()
        self._on_write(self.digest)

    def commit(self) -> None:
        """Turn the ingest into complete content of the store.

        Raises:
            ValueError: The ingest has ended.
            Aborted: The bytes do not match the digest. The ingest was removed.
        """
        self._check_open()
        if Digest.of(memoryview(self.data), self.digest.algorithm) != self.digest:
            self.abort()
            raise Aborted(f"the content does not match {self.digest}")
        self._has_ended = True
        self._update_readers(complete=True)
        self._on_end(self, True)

    def abort(self) -> None:
        """Remove the ingest. Does nothing if it has ended."""
        if not self._has_ended:
            self._has_ended = True
            self._update_readers(aborted=True)
            self._on_end(self, False)

    def open(self) -> Content:
        """Open the content, to be read while it arrives."""
        reader = _MemoryContent(self.data, self.size, complete=False)
        self._readers.append(reader)
        return reader

    def _check_open(self) -> None:
        if self._has_ended:
            raise ValueError(f"the ingest of {self.digest} has ended")

    def _update_readers(self, *, complete: bool = False, aborted: bool = False) -> None:
        self._readers = [reader for reader in self._readers if not reader.is_closed]
        for reader in self._readers:
            reader.update(complete=complete, aborted=aborted)


class _MemoryContent(Content):
    """Content in `data`, which grows until its ingest calls `update` with `complete` or `aborted`."""

    def __init__(self, data: bytes | bytearray, size: int | None, *, complete: bool) -> None:
        self._data = data
        self._is_aborted = False
        self._changes = Broadcast()
        self.size = size
        self.available = len(data)
        self.complete = complete
        self.is_closed = False

    def update(self, *, complete: bool, aborted: bool) -> None:
        """Show the new bytes, and whether the ingest has ended."""
        self.available = len(self._data)
        self.complete = complete
        self._is_aborted = aborted
        if complete:
            self.size = self.available
        self._changes.notify()

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        self._check_open()
        piece = self._data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    @override
    async def wait(self, past: int) -> int:
        while self.available <= past and not self.complete:
            if self._is_aborted:
                raise Aborted("the ingest was aborted")
            await self._changes.next_change.wait()
            self._check_open()
        return self.available

    @override
    async def aclose(self) -> None:
        self.is_closed = True
        self._data = b""
        self._changes.notify()

    def _check_open(self) -> None:
        if self.is_closed:
            raise ValueError("the content is closed")


@dataclass(frozen=True, slots=True)
class _MemoryBlob:
    descriptor: Descriptor
    data: bytes
