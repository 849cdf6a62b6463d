"""How bytes get from one source after the other to where they are wanted: collected, hashed on the way, or untouched.

Each passage keeps its place from source to source. A source's errors (PeerUnavailable) are raised only when all that
it gave before has been passed on, but for what a verifier withholds.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import NamedTuple, TypeAlias

from typing_extensions import override

from peili.mirror.limits import MIB
from peili.mirror.relay.buffers import BufferPool, BufferRing
from peili.mirror.relay.means import Sink
from peili.mirror.relay.source import Source
from peili.mirror.relay.verify import HashThread, Piece, Verifier
from peili.mirror.server.socket_writer import SocketWriter

if sys.platform == "linux":
    import fcntl

Progress: TypeAlias = Callable[[int], None]
_Hashed: TypeAlias = asyncio.Queue[asyncio.Future[Piece] | None]
_SPLICE = MIB
"""Bytes that are moved at once at most."""
_PIPE = MIB
"""What a pipe is made for. That is a number of places, each of which takes what one packet brought, however little:
the more there are, the more is moved by one call.
"""


class Pipeline(ABC):
    """Takes sources in turn, each from the offset on where the one before failed; then `finish` or `release`."""

    @abstractmethod
    async def take(self, source: Source) -> None:
        """All that `source` has left. Raises PeerUnavailable, and what the sink raises."""

    async def release(self) -> None:
        """There is no more: what was withheld is given up unverified, so that the runtime can go on behind it."""
        return

    async def finish(self) -> None:
        """All has come. Raises DigestMismatch where it is wrong: its end has been withheld then."""
        return


class FillPipeline(Pipeline):
    """Into `room`, which has just as many bytes as come. Nothing is verified."""

    def __init__(self, room: memoryview) -> None:
        self._room = room

    @override
    async def take(self, source: Source) -> None:
        while source.left:
            count = await source.readinto(self._room)
            self._room = self._room[count:]


class CollectPipeline(Pipeline):
    """Into memory, verified as a whole: `data`, when it is finished."""

    def __init__(self, length: int, verifier: Verifier, lane: HashThread) -> None:
        self.data = b""
        # Touched as bytes come, not when a peer says how many they will be.
        self._all = memoryview(mmap.mmap(-1, length) if length else b"")
        self._done = 0
        self._verifier = verifier
        self._lane = lane

    @override
    async def take(self, source: Source) -> None:
        while source.left:
            self._done += await source.readinto(self._all[self._done :])

    @override
    async def finish(self) -> None:
        await self._lane.feed(self._verifier, self._all)
        self.data = bytes(self._verifier.finish())
        self._all = memoryview(b"")


class HashPipeline(Pipeline):
    """To `sink`, through `ring`: while one piece is sent, the next ones are hashed and read.

    `lane` has to be the same for all of one verifier's pieces.
    """

    def __init__(
        self, sink: Sink, ring: BufferRing, verifier: Verifier, lane: HashThread, *, start: int, progress: Progress
    ) -> None:
        self._sink = sink
        self._ring = ring
        self._verifier = verifier
        self._lane = lane
        self._handed = start
        self._progress = progress

    @override
    async def take(self, source: Source) -> None:
        hashed: _Hashed = asyncio.Queue()  # no longer than the ring
        reading = asyncio.create_task(self._read(source, hashed))
        try:
            while (piece := await hashed.get()) is not None:
                await self._pass_on(await piece)
        finally:
            reading.cancel()
            await asyncio.wait([reading])
        reading.result()

    @override
    async def release(self) -> None:
        await self._pass_on(self._verifier.release())

    @override
    async def finish(self) -> None:
        await self._pass_on(self._verifier.finish())

    async def _read(self, source: Source, hashed: _Hashed) -> None:
        """Put each piece into `hashed`, and None at the end."""
        try:
            while source.left:
                buffer = await self._ring.next_buffer()
                count = await source.readinto(buffer)
                self._ring.mark_filled()
                hashed.put_nowait(self._lane.feed(self._verifier, buffer[:count]))
        finally:
            hashed.put_nowait(None)

    async def _pass_on(self, piece: Piece) -> None:
        if piece:
            await self._sink.send(piece)
            self._ring.free_oldest()
            self._handed += len(piece)
            self._progress(self._handed)


class PassThroughPipeline(Pipeline):
    """To `sink`, by the kernel alone where both sides are plain sockets and there is a pipe to be had. Nothing is read
    ahead, nothing withheld.
    """

    def __init__(self, sink: Sink, memory: BufferPool, progress: Progress) -> None:
        self._sink = sink
        self._memory = memory
        self._progress = progress

    @override
    async def take(self, source: Source) -> None:
        with _pipe() as pipe:
            await self._copy(
                source, lambda: pipe is not None and self._sink.socket_writer is not None and source.can_splice
            )
            if pipe is not None and (socket_writer := self._sink.socket_writer) is not None:
                await self._splice(source, pipe, socket_writer)

    async def _splice(self, source: Source, pipe: _Pipe, socket_writer: SocketWriter) -> None:
        while source.left:
            await socket_writer.splice(pipe.out_of, await source.splice(pipe.into, _SPLICE))
            self._progress(source.offset)
            await asyncio.sleep(0)  # where nobody has to be waited for, others would not have their turn

    async def _copy(self, source: Source, enough: Callable[[], bool]) -> None:
        with self._memory.ring() as ring:
            buffer = await ring.next_buffer()
            while source.left and not enough():
                count = await source.readinto(buffer)
                await self._sink.send(buffer[:count])
                self._progress(source.offset)
                await asyncio.sleep(0)


class _Pipe(NamedTuple):
    """The two ends of one."""

    into: int
    out_of: int


@contextmanager
def _pipe() -> Generator[_Pipe | None]:
    """A new pipe; None where this process may have no more descriptors, or pipes don't help."""
    pipe = None
    if sys.platform == "linux":
        with suppress(OSError):
            out_of, into = os.pipe()
            pipe = _Pipe(into, out_of)
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, _PIPE)  # where the system's bound is reached, it stays a smaller one
    try:
        yield pipe
    finally:
        for end in pipe or ():
            os.close(end)
