"""Moves bytes from sources to where they go: collected in memory, hashed on the way to the runtime, or passed through.

A pipeline keeps its place from one source to the next. It raises an error of a source (PeerUnavailable) only after it
has passed on all bytes that the source sent before, except for those that a verifier withholds.
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

from peili.mirror.limits import MIB
from peili.mirror.relay.buffers import BufferPool, BufferRing
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
