"""Passages between a source and a sink that nobody ever has to wait for: others must have their turn then, too."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest
from typing_extensions import override

from peili.mirror import Digest, Peer
from peili.mirror.limits import KIB, MIB
from peili.mirror.oci.ranges import Span
from peili.mirror.relay.buffers import RING_LENGTH, BufferPool, BufferRing
from peili.mirror.relay.pipeline import HashPipeline, PassThroughPipeline, Pipeline
from peili.mirror.relay.source import Source
from peili.mirror.relay.verify import HashThreadPool, Verifier
from peili.mirror.server.socket_writer import SocketWriter

pytestmark = pytest.mark.anyio

PIECES = 64
PIECE = 32 * KIB


class Quick(Source):
    """Always has the next piece."""

    def __init__(self) -> None:
        self.peer = Peer("quick", ())
        self.span = Span.whole(PIECES * PIECE)
        self.offset = 0

    @property
    @override
    def can_splice(self) -> bool:
        return True

    @override
    async def readinto(self, buffer: memoryview) -> int:
        self.offset += PIECE
        return PIECE

    @override
    async def splice(self, pipe: int, count: int) -> int:
        self.offset += PIECE
        return os.write(pipe, bytes(PIECE))


class Taking(SocketWriter):
    """Takes everything at once."""

    taken = 0

    @override
    def set_timeout(self, seconds: float) -> None:
        """It takes everything."""

    @override
    async def sendfile(self, fd: int, offset: int, count: int) -> int:
        raise NotImplementedError

    @override
    async def send(self, data: bytes | memoryview) -> None:
        self.taken += len(data)

    @override
    async def splice(self, pipe: int, count: int) -> None:
        self.taken += len(os.read(pipe, count))


class Sink:
    """With an socket_writer, or without."""

    def __init__(self, socket_writer: Taking | None) -> None:
        self.socket_writer = socket_writer
        self.taken = 0

    async def send(self, data: bytes | memoryview) -> None:
        self.taken += len(data)


def _ignore(_: int) -> None:
    pass


@pytest.fixture
def hasher() -> Generator[HashThreadPool]:
    made = HashThreadPool()
    yield made
    made.close()


@contextmanager
def hashing(sink: Sink, hasher: HashThreadPool) -> Generator[Pipeline]:
    verifier = Verifier(Digest.of(bytes(PIECES * PIECE)))
    with BufferPool(RING_LENGTH * PIECE).ring() as ring:
        yield HashPipeline(sink, ring, verifier, hasher.thread(), start=0, progress=_ignore)


@contextmanager
def untouched(sink: Sink, _: HashThreadPool) -> Generator[Pipeline]:
    yield PassThroughPipeline(sink, BufferPool(MIB), _ignore)


@pytest.mark.parametrize(
    ("passage", "socket_writer"),
    [(hashing, None), (untouched, None), (untouched, Taking())],
    ids=["hashed", "copied", "spliced"],
)
async def test_others_have_their_turn_between_pieces(
    passage: Callable[[Sink, HashThreadPool], AbstractContextManager[Pipeline]],
    socket_writer: Taking | None,
    hasher: HashThreadPool,
) -> None:
    sink, source, turns = Sink(socket_writer), Quick(), 0
    with passage(sink, hasher) as making:
        taking = asyncio.create_task(making.consume(source))
        while not taking.done():
            turns += 1
            await asyncio.sleep(0)
        await taking
        await making.finish()
    assert sink.taken + (socket_writer.taken if socket_writer else 0) == PIECES * PIECE
    assert turns >= PIECES / RING_LENGTH


async def test_without_a_pipe_bytes_are_copied(monkeypatch: pytest.MonkeyPatch, hasher: HashThreadPool) -> None:
    """As where a process has as many descriptors as it may."""

    def none_left() -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pipe", none_left)
    socket_writer = Taking()
    sink = Sink(socket_writer)
    with untouched(sink, hasher) as passage:
        await passage.consume(Quick())
    assert (sink.taken, socket_writer.taken) == (PIECES * PIECE, 0)


ALONE = RING_LENGTH * 4 * MIB
"""What one transfer takes where there is as much. Of a memory that has no more, it shows what is not given back."""


async def round_of(ring: BufferRing) -> int:
    """The size of a ring when each of its buffers was free once."""
    for _ in range(RING_LENGTH):
        await ring.next_buffer()
        ring.mark_filled()
        ring.free_oldest()
    return ring.size


async def test_one_transfer_has_large_pieces_and_gives_them_back() -> None:
    memory = BufferPool(ALONE)
    for _ in range(2):
        with memory.ring() as ring:
            assert await round_of(ring) == ALONE


async def test_what_one_has_another_has_not() -> None:
    memory = BufferPool(ALONE)
    with memory.ring() as first:
        await round_of(first)
        with memory.ring() as second:
            assert await round_of(second) == RING_LENGTH * 32 * KIB  # the least; nothing is left


async def test_memory_is_shared_by_those_who_go_on() -> None:
    memory = BufferPool(32 * MIB)
    with memory.ring() as first:
        alone = await round_of(first)
        with ExitStack() as stack:
            others = [stack.enter_context(memory.ring()) for _ in range(9)]
            await round_of(first)  # gives back what is too much now
            sizes = [await round_of(ring) for ring in (first, *others)]
            assert min(sizes) > 1.5 * MIB
            assert sum(sizes) <= 32 * MIB
        assert await round_of(first) == alone


async def test_memory_is_bounded_whoever_stands_still() -> None:
    memory = BufferPool(ALONE)
    with ExitStack() as stack:
        sizes = [await round_of(stack.enter_context(memory.ring())) for _ in range(100)]
        assert sizes[0] == ALONE
        assert sizes[-1] == RING_LENGTH * 32 * KIB
        assert sum(sizes) <= ALONE + 100 * RING_LENGTH * 32 * KIB
    with memory.ring() as ring:
        assert await round_of(ring) == ALONE  # all was given back


async def test_a_buffer_is_not_given_twice_before_it_was_given_back() -> None:
    with BufferPool(MIB).ring() as ring:
        for mark in range(RING_LENGTH):
            (await ring.next_buffer())[:1] = bytes([mark])
            ring.mark_filled()
        waiting = asyncio.create_task(ring.next_buffer())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        ring.free_oldest()
        assert (await waiting)[0] == 0  # the oldest
