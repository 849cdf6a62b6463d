"""Moves bytes from sources to where they go: collected in memory, hashed on the way to the runtime, or passed through.

A pipeline keeps its place from one source to the next. It raises an error of a source (PeerUnavailable) only after it
has passed on all bytes that the source sent before, except for those that a verifier withholds. All pipelines share the
memory of one `BufferPool`, which is bounded; a transfer's part of it is freed when the transfer ends.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import NamedTuple, Protocol, TypeAlias

from typing_extensions import override

from peili.mirror.limits import KIB, MIB
from peili.mirror.relay.source import Source
from peili.mirror.relay.verify import HashThread, Piece, Verifier
from peili.mirror.server.socket_writer import SocketWriter

if sys.platform == "linux":
    import fcntl

Progress: TypeAlias = Callable[[int], None]
"""Called with the byte of the content up to which the runtime has been served."""
_HashedPieces: TypeAlias = asyncio.Queue[asyncio.Future[Piece] | None]
_MAX_SPLICE = MIB
"""Bytes that one call moves."""
_PIPE_SIZE = MIB
"""The size of a pipe. It means a number of slots, each of which takes what one packet brought, however little. The more
slots there are, the more one call moves.
"""
RING_LENGTH = 5
"""Buffers of one transfer: one is sent, one is withheld, one is hashed, one is read, and one is spare."""
_LARGEST_BUFFER = 4 * MIB
"""Bytes of a buffer. Each buffer costs several hand-overs between threads, which take time on a busy machine: 1 GiB
took 1.24 CPU seconds in buffers of 0.8 MiB and 0.95 in these, and was 1.25 times as fast.
"""
_SMALLEST_BUFFER = 32 * KIB
_SMALL_CONTENT = 64 * KIB
"""Content up to this many bytes has reserved room that larger content cannot take. Most manifests are smaller."""


class Sink(Protocol):
    """Where a body goes: the response of a door. Its errors (OSError, TimeoutError) are the runtime's."""

    @property
    def socket_writer(self) -> SocketWriter | None:
        """Writes to the runtime's socket without ASGI, if that is possible."""

    async def send(self, data: bytes | memoryview) -> None:
        """Send more of the body. The caller may overwrite `data` when this returns."""


class Pipeline(ABC):
    """Consumes sources in turn, each from the byte where the previous one failed.

    At the end, call `finish` or `release`.
    """

    @abstractmethod
    async def consume(self, source: Source) -> None:
        """Read all that `source` has left. Raises PeerUnavailable, and what the sink raises."""

    async def release(self) -> None:
        """There is no more: pass on the withheld bytes unverified, so that the runtime can continue after them."""
        return

    async def finish(self) -> None:
        """All bytes have come: verify them, and pass on the withheld end. Raises DigestMismatch."""
        return


class FillPipeline(Pipeline):
    """Reads into `buffer`, which has exactly as many bytes as come. Verifies nothing."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer

    @override
    async def consume(self, source: Source) -> None:
        while source.left:
            count = await source.readinto(self._buffer)
            self._buffer = self._buffer[count:]


class CollectPipeline(Pipeline):
    """Collects bytes in memory, and verifies them as a whole.

    Args:
        length: how many bytes come.
        verifier: checks them.
        thread: hashes them.

    Attributes:
        data: the bytes, after `finish`.
    """

    def __init__(self, length: int, verifier: Verifier, thread: HashThread) -> None:
        self.data = b""
        # The system provides the memory when bytes come, not when a peer states how many there will be.
        self._buffer = memoryview(mmap.mmap(-1, length) if length else b"")
        self._filled = 0
        self._verifier = verifier
        self._thread = thread

    @override
    async def consume(self, source: Source) -> None:
        while source.left:
            self._filled += await source.readinto(self._buffer[self._filled :])

    @override
    async def finish(self) -> None:
        await self._thread.feed(self._verifier, self._buffer)
        self.data = bytes(self._verifier.finish())
        self._buffer = memoryview(b"")


class HashPipeline(Pipeline):
    """Sends verified bytes to the runtime. While one buffer is sent, the next ones are hashed and read.

    Each buffer of the ring goes through these steps: read, hashed in the thread, withheld, sent, free.

    Args:
        sink: where the bytes go.
        ring: the buffers.
        verifier: withholds the last piece until the digest is checked.
        thread: hashes; the same one for all pieces of the verifier.
        start: the first byte.
        progress: called after each piece that was sent.
    """

    def __init__(
        self, sink: Sink, ring: BufferRing, verifier: Verifier, thread: HashThread, *, start: int, progress: Progress
    ) -> None:
        self._sink = sink
        self._ring = ring
        self._verifier = verifier
        self._thread = thread
        self._offset = start
        self._progress = progress

    @override
    async def consume(self, source: Source) -> None:
        hashed: _HashedPieces = asyncio.Queue()  # no longer than the ring
        reading = asyncio.create_task(self._read(source, hashed))
        try:
            while (piece := await hashed.get()) is not None:
                await self._send(await piece)
        finally:
            reading.cancel()
            await asyncio.wait([reading])
        reading.result()

    @override
    async def release(self) -> None:
        await self._send(self._verifier.release())

    @override
    async def finish(self) -> None:
        await self._send(self._verifier.finish())

    async def _read(self, source: Source, hashed: _HashedPieces) -> None:
        """Put each piece into `hashed`, and None at the end."""
        try:
            while source.left:
                buffer = await self._ring.next_buffer()
                count = await source.readinto(buffer)
                self._ring.mark_filled()
                hashed.put_nowait(self._thread.feed(self._verifier, buffer[:count]))
        finally:
            hashed.put_nowait(None)

    async def _send(self, piece: Piece) -> None:
        if piece:
            await self._sink.send(piece)
            self._ring.free_oldest()
            self._offset += len(piece)
            self._progress(self._offset)


class PassThroughPipeline(Pipeline):
    """Sends unverified bytes to the runtime. Reads nothing ahead, and withholds nothing.

    If both sides are plain sockets and a pipe is available, the kernel moves the bytes.
    """

    def __init__(self, sink: Sink, buffers: BufferPool, progress: Progress) -> None:
        self._sink = sink
        self._buffers = buffers
        self._progress = progress

    @override
    async def consume(self, source: Source) -> None:
        with _open_pipe() as pipe:
            await self._copy(source, pipe)
            if pipe is not None and (socket_writer := self._sink.socket_writer) is not None:
                while source.left:
                    await socket_writer.splice(pipe.read_end, await source.splice(pipe.write_end, _MAX_SPLICE))
                    self._progress(source.offset)
                    await asyncio.sleep(0)  # if neither side makes it wait, other tasks would not run

    async def _copy(self, source: Source, pipe: _Pipe | None) -> None:
        """Copy until the rest can be spliced."""
        with self._buffers.ring() as ring:
            buffer = await ring.next_buffer()
            while source.left and not (pipe is not None and self._sink.socket_writer is not None and source.can_splice):
                count = await source.readinto(buffer)
                await self._sink.send(buffer[:count])
                self._progress(source.offset)
                await asyncio.sleep(0)


class BufferPool:
    """Lends buffers to transfers, up to `max_bytes` in all. If all bytes are lent, further buffers have the least size.

    Up to half of the pool can be reserved for content that is collected whole, and an eighth more for small content.
    Rings shrink by what is reserved as they go on.

    All rings have the same share. If a new ring makes the shares smaller, an older ring gives back the surplus as it
    goes on. Until then, the new ring works with what is left.

    Args:
        max_bytes: the size of the pool.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._available = max_bytes  # negative if buffers of the least size exceed the pool
        self._rings = 0
        self._reserved = 0
        self._released = asyncio.Event()

    async def reserve(self, count: int) -> None:
        """Wait until `count` bytes can be reserved for content that is collected whole. Call `release` at the end.

        Content that is larger than the room gets it if nothing else is reserved. The caller bounds the wait.
        """
        while not self._has_room(count):
            self._released.clear()
            await self._released.wait()
        self._reserved += count
        self._available -= count

    def release(self, count: int) -> None:
        """Free `count` bytes that `reserve` reserved."""
        self._reserved -= count
        self._available += count
        self._released.set()

    def _has_room(self, count: int) -> bool:
        room = self._max_bytes // 2 + (self._max_bytes // 8 if count <= _SMALL_CONTENT else 0)
        return self._reserved == 0 or self._reserved + count <= room

    @contextmanager
    def ring(self) -> Generator[BufferRing]:
        """Lend a ring of buffers to one transfer."""
        self._rings += 1
        ring = BufferRing(self)
        try:
            yield ring
        finally:
            self._rings -= 1
            self._available += ring.size

    def resized(self, buffer: memoryview) -> memoryview:
        """Return `buffer`, or a new one in its place if its size is far from the current share. Its content is lost."""
        self._available += len(buffer)
        share = min(
            _LARGEST_BUFFER, max(0, self._max_bytes - self._reserved) // (RING_LENGTH * self._rings), self._available
        )
        size = max(_SMALLEST_BUFFER, share // KIB * KIB)
        if not size <= len(buffer) * 2 <= 2 * size:  # a buffer may be a little small, else each new ring changes all
            # An anonymous mapping, not the heap: the system gets the memory back when the transfer ends.
            buffer = memoryview(mmap.mmap(-1, size))
        self._available -= len(buffer)
        return buffer


class BufferRing:
    """Buffers that one task fills and another task frees, in the same order."""

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._buffers = [memoryview(b"")] * RING_LENGTH
        self._filled = 0
        self._freed = 0
        self._is_freed = asyncio.Event()

    @property
    def size(self) -> int:
        """Bytes of all buffers."""
        return sum(map(len, self._buffers))

    async def next_buffer(self) -> memoryview:
        """Wait for the next free buffer. Until `mark_filled` is called, it returns the same one again."""
        while self._filled - self._freed == RING_LENGTH:
            self._is_freed.clear()
            await self._is_freed.wait()
        index = self._filled % RING_LENGTH
        self._buffers[index] = self._pool.resized(self._buffers[index])
        return self._buffers[index]

    def mark_filled(self) -> None:
        """The buffer that `next_buffer` returned is in use."""
        self._filled += 1

    def free_oldest(self) -> None:
        """The buffer that has been in use for the longest time is free."""
        self._freed += 1
        self._is_freed.set()


class _Pipe(NamedTuple):
    write_end: int
    read_end: int


@contextmanager
def _open_pipe() -> Generator[_Pipe | None]:
    """A new pipe; None if this process may have no more descriptors, or if the system cannot splice."""
    pipe = None
    if sys.platform == "linux":
        with suppress(OSError):
            read_end, write_end = os.pipe()
            pipe = _Pipe(write_end, read_end)
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)  # at the system's bound, the pipe stays smaller
    try:
        yield pipe
    finally:
        for end in pipe or ():
            os.close(end)
