"""Pipelines that move bytes from sources: into memory, or to the runtime, with or without a check of the digest.

A pipeline continues where the previous source stopped. It raises the error of a source (PeerUnavailable) only after it
has passed on all bytes that the source sent before, except those that a verifier withholds. All pipelines share the
memory of one bounded `BufferPool`. The memory of a transfer is freed when the transfer ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import NamedTuple, Protocol, TypeAlias

from typing_extensions import override

from peili.mirror.limits import MIB
from peili.mirror.relay.buffers import BufferPool, BufferRing
from peili.mirror.relay.hash_threads import HashThread
from peili.mirror.relay.source import Source
from peili.mirror.relay.verify import Piece, Verifier
from peili.mirror.server.socket_writer import SocketWriter
from peili.mirror.support.memory import new_memory

if sys.platform == "linux":
    import fcntl

Progress: TypeAlias = Callable[[int], None]
"""Called with an offset: the runtime has received all bytes of the content before it."""
_HashedPieces: TypeAlias = asyncio.Queue[asyncio.Future[Piece] | None]
_MAX_SPLICE = MIB
"""The most bytes that one splice moves."""
_PIPE_SIZE = MIB
"""The size of a pipe, which determines its number of slots. The bytes of one packet fill a slot, even if they are few.
So one call moves more bytes if there are more slots.
"""


class Sink(Protocol):
    """Where a body goes: the response of a door. It raises OSError or TimeoutError if the runtime does not read."""

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
        """Read `source` to its end.

        Raises:
            PeerUnavailable: The source failed. Another one can continue at its offset.
            OSError: The sink failed. TimeoutError is one.
        """

    async def release(self) -> None:
        """Pass on the withheld bytes unverified: no source has the rest, and the runtime can continue after them."""
        return

    async def finish(self) -> None:
        """Verify the bytes after the last one was read, and pass on the withheld end. Raises DigestMismatch."""
        return


class FillPipeline(Pipeline):
    """Reads into `buffer`, which has exactly the size of what is read. Verifies nothing."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer

    @override
    async def consume(self, source: Source) -> None:
        while source.remaining:
            count = await source.readinto(self._buffer)
            self._buffer = self._buffer[count:]


class CollectPipeline(Pipeline):
    """Collects bytes in memory, and verifies them as a whole.

    Args:
        length: The number of bytes.
        verifier: Checks the bytes.
        thread: Hashes the bytes.

    Attributes:
        data: The bytes, after `finish`.
    """

    def __init__(self, length: int, verifier: Verifier, thread: HashThread) -> None:
        self.data = b""
        # It takes memory only when bytes arrive, not already when a peer states their number.
        self._buffer = new_memory(length)
        self._filled = 0
        self._verifier = verifier
        self._thread = thread

    @override
    async def consume(self, source: Source) -> None:
        while source.remaining:
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
        sink: Where the bytes go.
        ring: The buffers.
        verifier: Withholds the last piece until the digest is checked.
        thread: Hashes all pieces.
        start: The offset of the first byte in the content.
        progress: Called after each piece that was sent.
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
            while source.remaining:
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
            while source.remaining:
                await self._copy(source, pipe)
                while (
                    pipe is not None
                    and (socket_writer := self._splicing_writer())
                    and source.remaining
                    and source.can_splice
                ):
                    await socket_writer.splice(pipe.read_end, await source.splice(pipe.write_end, _MAX_SPLICE))
                    self._progress(source.offset)
                    await asyncio.sleep(0)  # lets other tasks run if neither side makes this one wait

    async def _copy(self, source: Source, pipe: _Pipe | None) -> None:
        """Copy until the rest can be spliced."""
        with self._buffers.ring() as ring:
            buffer = await ring.next_buffer()
            while source.remaining and not (pipe is not None and self._splicing_writer() and source.can_splice):
                count = await source.readinto(buffer)
                await self._sink.send(buffer[:count])
                self._progress(source.offset)
                await asyncio.sleep(0)

    def _splicing_writer(self) -> SocketWriter | None:
        writer = self._sink.socket_writer
        return writer if writer is not None and writer.can_splice else None


class _Pipe(NamedTuple):
    write_end: int
    read_end: int


@contextmanager
def _open_pipe() -> Generator[_Pipe | None]:
    """Open a pipe. Yield None if no file descriptor is available, or if the system cannot splice."""
    pipe = None
    if sys.platform == "linux":
        with suppress(OSError):
            read_end, write_end = os.pipe()
            pipe = _Pipe(write_end, read_end)
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)  # if it fails, the pipe stays small
    try:
        yield pipe
    finally:
        for end in pipe or ():
            os.close(end)
