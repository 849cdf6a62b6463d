"""A store in memory, for tests and demonstrations: small, but it keeps every promise, growing content included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from typing_extensions import override

from peili.mirror import (
    Aborted,
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
    """Has what it is given. Not thread-safe: once a mirror runs, use it on the mirror's loop only."""

    def __init__(self) -> None:
        self._whole: dict[Digest, _Whole] = {}
        self._arriving: dict[Digest, Ingest] = {}
        self._tags: dict[Reference, Descriptor] = {}
        self._inventory = Inventory()
        self._inventory.replace(())

    def add(self, data: bytes, *, algorithm: str = "sha256") -> Descriptor:
        """Put whole content in; what describes it."""
        descriptor = Descriptor(detect_media_type(data), Digest.of(data, algorithm), len(data))
        self._whole[descriptor.digest] = _Whole(descriptor, data)
        self._tell(descriptor.digest)
        return descriptor

    def tag(self, reference: Reference, descriptor: Descriptor) -> None:
        """Let `reference` stand for content that is here whole. Raises ValueError where it is not."""
        if descriptor.digest not in self._whole:
            raise ValueError(f"{descriptor.digest} is not here; add() it before it is tagged")
        self._tags[reference] = descriptor
        self._tell(reference)

    def remove(self, key: Key) -> None:
        """Take out a tag, or whole content and the tags that stand for it. What is open stays readable.

        Nothing happens where there is no such thing.
        """
        if isinstance(key, Reference):
            gone: list[Key] = [key]
        else:
            gone = [key, *(tag for tag, target in self._tags.items() if target.digest == key)]
        for each in gone:
            if isinstance(each, Reference):
                self._tags.pop(each, None)
            else:
                self._whole.pop(each, None)
        self._tell(*gone)

    def begin(self, digest: Digest, size: int | None = None) -> Ingest:
        """Start content that arrives bit by bit. Raises ValueError where it is here or arrives already."""
        if digest in self._whole or digest in self._arriving:
            raise ValueError(f"{digest} is here, or arrives already")
        ingest = self._arriving[digest] = Ingest(digest, size, self._tell, self._ended)
        self._tell(digest)
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
            return self._whole[digest].descriptor
        except KeyError:
            raise NotFound(f"{digest} is not here whole") from None

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        if whole := self._whole.get(digest):
            return _MemoryContent(whole.data, whole.descriptor.size, complete=True)
        if partial and (ingest := self._arriving.get(digest)):
            return ingest.open()
        raise NotFound(f"{digest} is not here{'' if partial else ' whole'}")

    @override
    def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        return self._inventory.watch()

    @override
    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        return sorted(self._tags.items(), key=lambda item: item[0])

    @override
    async def discard(self, digest: Digest) -> bool:
        ingest = self._arriving.get(digest)
        if ingest is not None:
            ingest.abort()
        return ingest is not None

    def _ended(self, ingest: Ingest, whole: bool) -> None:
        del self._arriving[ingest.digest]
        if whole:
            self.add(bytes(ingest.data), algorithm=ingest.digest.algorithm)
        else:
            self._tell(ingest.digest)

    def _tell(self, *keys: Key) -> None:
        self._inventory.update(self._state(key) for key in keys)

    def _state(self, key: Key) -> StoreEvent:
        if isinstance(key, Reference):
            return Have(key) if key in self._tags else Gone(key)
        if whole := self._whole.get(key):
            return Have(key, whole.descriptor.size)
        if ingest := self._arriving.get(key):
            return Have(key, ingest.size, complete=False, available=len(ingest.data))
        return Gone(key)


class Ingest:
    """Content on its way into a `MemoryStore`; made by `MemoryStore.begin`. Ends with `commit` or `abort`."""

    def __init__(
        self, digest: Digest, size: int | None, arrived: Callable[[Digest], None], ended: Callable[[Ingest, bool], None]
    ) -> None:
        self._arrived = arrived
        self._ended = ended
        self._readers: list[_MemoryContent] = []
        self._over = False
        self.digest = digest
        self.size = size
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        """More bytes have arrived. Raises ValueError when it is over, or they are more than `size`."""
        self._check_going_on()
        if self.size is not None and len(self.data) + len(data) > self.size:
            raise ValueError(f"{self.digest} would be longer than its {self.size} bytes")
        self.data += data
        self._tell_readers()
        self._arrived(self.digest)

    def commit(self) -> None:
        """All has arrived: the store has it whole now. Raises Aborted, and has dropped it, when the digest is wrong."""
        self._check_going_on()
        if Digest.of(memoryview(self.data), self.digest.algorithm) != self.digest:
            self.abort()
            raise Aborted(f"what arrived is not {self.digest}")
        self._over = True
        self._tell_readers(complete=True)
        self._ended(self, True)

    def abort(self) -> None:
        """The rest will never arrive. Does nothing when it is over."""
        if not self._over:
            self._over = True
            self._tell_readers(aborted=True)
            self._ended(self, False)

    def open(self) -> Content:
        """What has arrived and will arrive, to be read while it does."""
        reader = _MemoryContent(self.data, self.size, complete=False)
        self._readers.append(reader)
        return reader

    def _check_going_on(self) -> None:
        if self._over:
            raise ValueError(f"{self.digest} does not arrive any more")

    def _tell_readers(self, *, complete: bool = False, aborted: bool = False) -> None:
        self._readers = [reader for reader in self._readers if not reader.closed]
        for reader in self._readers:
            reader.changed(complete=complete, aborted=aborted)


class _MemoryContent(Content):
    """`data` grows where the content is not complete; its ingest says when."""

    def __init__(self, data: bytes | bytearray, size: int | None, *, complete: bool) -> None:
        self._data = data
        self._aborted = False
        self._change = asyncio.Event()  # replaced at each change, so that every waiter sees each
        self.size = size
        self.available = len(data)
        self.complete = complete
        self.closed = False

    def changed(self, *, complete: bool, aborted: bool) -> None:
        """There are more bytes, or there will be none."""
        self.available = len(self._data)
        self.complete = complete
        self._aborted = aborted
        if complete:
            self.size = self.available
        change, self._change = self._change, asyncio.Event()
        change.set()

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        self._check_open()
        piece = self._data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    @override
    async def wait(self, past: int) -> int:
        while self.available <= past and not self.complete:
            if self._aborted:
                raise Aborted("what was arriving was given up")
            await self._change.wait()
            self._check_open()
        return self.available

    @override
    async def aclose(self) -> None:
        self.closed = True
        self._data = b""
        self._change.set()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the content is closed")


@dataclass(frozen=True, slots=True)
class _Whole:
    descriptor: Descriptor
    data: bytes
