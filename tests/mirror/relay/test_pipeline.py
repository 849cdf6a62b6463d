"""Pipelines share the event loop and the memory: other tasks run between pieces, and all memory is bounded."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
from tests.mirror.relay.peers import Exchange, honest, peers
from tests.mirror.relay.pulling import FixedRouter, content, pulling
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Digest, Peer
from peili.mirror.limits import KIB, MIB
from peili.mirror.oci.ranges import Span
from peili.mirror.relay.buffers import RING_LENGTH, BufferPool, BufferRing
from peili.mirror.relay.hash_threads import HashThreadPool
from peili.mirror.relay.pipeline import HashPipeline, PassThroughPipeline, Pipeline
from peili.mirror.relay.source import Source
from peili.mirror.relay.verify import Verifier
from peili.mirror.server.socket_writer import CountingSocketWriter, SocketWriter

pytestmark = pytest.mark.anyio

PIECES = 64
PIECE = 32 * KIB


class InstantSource(Source):
    """Always has the next piece, so that nothing waits for it."""

    def __init__(self) -> None:
        self.peer = Peer("instant", ())
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


class InstantWriter(SocketWriter):
    """Takes everything at once, so that nothing waits for it."""

    written = 0

    @override
    def set_timeout(self, seconds: float) -> None:
        """Never waits."""

    @override
    async def sendfile(self, fd: int, offset: int, count: int) -> int:
        raise NotImplementedError

    @override
    async def send(self, data: bytes | memoryview) -> None:
        self.written += len(data)

    @override
    async def splice(self, pipe: int, count: int) -> None:
        self.written += len(os.read(pipe, count))


class InstantSink:
    """Takes everything at once, with or without a socket writer."""

    def __init__(self, socket_writer: SocketWriter | None) -> None:
        self.socket_writer = socket_writer
        self.written = 0

    async def send(self, data: bytes | memoryview) -> None:
        self.written += len(data)


def _ignore(_: int) -> None:
    pass


@pytest.fixture
def threads() -> Generator[HashThreadPool]:
    pool = HashThreadPool()
    yield pool
    pool.close()


@contextmanager
def hash_pipeline(sink: InstantSink, threads: HashThreadPool) -> Generator[Pipeline]:
    verifier = Verifier(Digest.of(bytes(PIECES * PIECE)))
    with BufferPool(RING_LENGTH * PIECE).ring() as ring:
        yield HashPipeline(sink, ring, verifier, threads.thread(), start=0, progress=_ignore)


@contextmanager
def pass_through_pipeline(sink: InstantSink, _: HashThreadPool) -> Generator[Pipeline]:
    yield PassThroughPipeline(sink, BufferPool(MIB), _ignore)


@pytest.mark.parametrize(
    ("make_pipeline", "socket_writer"),
    [(hash_pipeline, None), (pass_through_pipeline, None), (pass_through_pipeline, InstantWriter())],
    ids=["hashed", "copied", "spliced"],
)
async def test_other_tasks_run_between_pieces(
    make_pipeline: Callable[[InstantSink, HashThreadPool], AbstractContextManager[Pipeline]],
    socket_writer: InstantWriter | None,
    threads: HashThreadPool,
) -> None:
    sink, source, turns = InstantSink(socket_writer), InstantSource(), 0
    with make_pipeline(sink, threads) as pipeline:
        consuming = asyncio.create_task(pipeline.consume(source))
        while not consuming.done():
            turns += 1
            await asyncio.sleep(0)
        await consuming
        await pipeline.finish()
    assert sink.written + (socket_writer.written if socket_writer else 0) == PIECES * PIECE
    assert turns >= PIECES / RING_LENGTH


async def test_bytes_are_copied_if_there_is_no_pipe(monkeypatch: pytest.MonkeyPatch, threads: HashThreadPool) -> None:
    """For example because the process has as many descriptors as it may."""

    def fail() -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pipe", fail)
    socket_writer = InstantWriter()
    sink = InstantSink(socket_writer)
    with pass_through_pipeline(sink, threads) as pipeline:
        await pipeline.consume(InstantSource())
    assert (sink.written, socket_writer.written) == (PIECES * PIECE, 0)


class TlsLikeWriter(InstantWriter):
    """A writer to which no pipe can be spliced, as over TLS."""

    @property
    @override
    def can_splice(self) -> bool:
        return False


async def test_bytes_are_copied_if_the_writer_takes_no_pipe(threads: HashThreadPool) -> None:
    """Also if something wraps the writer."""
    socket_writer = TlsLikeWriter()
    sink = InstantSink(CountingSocketWriter(socket_writer, _ignore))
    with pass_through_pipeline(sink, threads) as pipeline:
        await pipeline.consume(InstantSource())
    assert (sink.written, socket_writer.written) == (PIECES * PIECE, 0)


FULL_RING = RING_LENGTH * 4 * MIB
"""The size of a ring if there is enough memory. In a pool of this size, a second full ring shows that all was freed."""


async def use_ring(ring: BufferRing) -> int:
    """Use and free each buffer once, so that the ring adapts. Returns its size."""
    for _ in range(RING_LENGTH):
        await ring.next_buffer()
        ring.mark_filled()
        ring.free_oldest()
    return ring.size


async def test_a_single_transfer_has_large_buffers_and_frees_them() -> None:
    pool = BufferPool(FULL_RING)
    for _ in range(2):
        with pool.ring() as ring:
            assert await use_ring(ring) == FULL_RING


async def test_a_ring_has_the_least_size_if_another_ring_has_all_memory() -> None:
    pool = BufferPool(FULL_RING)
    with pool.ring() as first:
        await use_ring(first)
        with pool.ring() as second:
            assert await use_ring(second) == RING_LENGTH * 32 * KIB


async def test_rings_that_go_on_share_the_memory() -> None:
    pool = BufferPool(32 * MIB)
    with pool.ring() as first:
        size_alone = await use_ring(first)
        with ExitStack() as stack:
            others = [stack.enter_context(pool.ring()) for _ in range(9)]
            await use_ring(first)  # gives back its surplus
            sizes = [await use_ring(ring) for ring in (first, *others)]
            assert min(sizes) > 1.5 * MIB
            assert sum(sizes) <= 32 * MIB
        assert await use_ring(first) == size_alone


async def test_memory_is_bounded_if_rings_stand_still() -> None:
    pool = BufferPool(FULL_RING)
    with ExitStack() as stack:
        sizes = [await use_ring(stack.enter_context(pool.ring())) for _ in range(100)]
        assert sizes[0] == FULL_RING
        assert sizes[-1] == RING_LENGTH * 32 * KIB
        assert sum(sizes) <= FULL_RING + 100 * RING_LENGTH * 32 * KIB
    with pool.ring() as ring:
        assert await use_ring(ring) == FULL_RING  # all was freed


async def test_memory_that_the_system_does_not_have_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(_: int) -> memoryview:
        raise OSError(errno.ENOMEM, "no memory")

    pool = BufferPool(FULL_RING)
    with ExitStack() as stack:
        first = stack.enter_context(pool.ring())
        await use_ring(first)
        others = [stack.enter_context(pool.ring()) for _ in range(9)]
        with monkeypatch.context() as patch:
            patch.setattr("peili.mirror.relay.buffers.new_memory", no_memory)
            for _ in range(20):
                with pytest.raises(OSError, match="no memory"):
                    await use_ring(first)
        sizes = [first.size, *[await use_ring(each) for each in others]]
        assert sum(sizes) <= FULL_RING + 10 * RING_LENGTH * 32 * KIB


async def test_a_buffer_is_lent_again_only_after_it_was_freed() -> None:
    with BufferPool(MIB).ring() as ring:
        for mark in range(RING_LENGTH):
            (await ring.next_buffer())[:1] = bytes([mark])
            ring.mark_filled()
        waiting = asyncio.create_task(ring.next_buffer())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        ring.free_oldest()
        assert (await waiting)[0] == 0  # the oldest


async def test_reserved_memory_is_bounded_and_small_content_has_extra_room() -> None:
    pool = BufferPool(16 * MIB)
    for _ in range(2):
        await pool.reserve(4 * MIB)
    waiting = asyncio.create_task(pool.reserve(MIB))
    await asyncio.sleep(0)
    assert not waiting.done()
    await pool.reserve(64 * KIB)
    pool.release(4 * MIB)
    async with asyncio.timeout(60):
        await waiting


async def test_content_larger_than_the_room_gets_it_alone() -> None:
    pool = BufferPool(MIB)
    await pool.reserve(4 * MIB)
    waiting = asyncio.create_task(pool.reserve(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    pool.release(4 * MIB)
    async with asyncio.timeout(60):
        await waiting


async def test_rings_are_smaller_while_memory_is_reserved() -> None:
    pool = BufferPool(2 * RING_LENGTH * MIB)
    with pool.ring() as ring:
        assert len(await ring.next_buffer()) == 2 * MIB
    await pool.reserve(RING_LENGTH * MIB)
    with pool.ring() as ring:
        assert len(await ring.next_buffer()) == MIB
    pool.release(RING_LENGTH * MIB)
    with pool.ring() as ring:
        assert len(await ring.next_buffer()) == 2 * MIB


async def test_stalled_collections_take_no_more_than_their_share() -> None:
    """Of eight requests for 200 KiB whose holders stall, two fit, and six go upstream. Then all memory is free."""
    contents, resume = [content(200 * KIB, seed) for seed in range(8)], asyncio.Event()

    async def stall(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send(exchange.body[:-1])
        await resume.wait()
        await exchange.send(exchange.body[-1:])

    async with peers(b"", honest) as [a]:

        async def by_path(exchange: Exchange) -> None:
            exchange.content = next(data for data in contents if Digest.of(data) in exchange.request.path)
            await stall(exchange)

        a.script = by_path
        limits: dict[str, Any] = {
            "relay_memory": 800 * KIB,
            "verify_ahead": MIB,
            "first_byte_timeout": 2,
            "stall_timeout": 60,
        }
        async with pulling(FixedRouter(a.holder), rate_window=600, wait_timeout=90, **limits) as host:
            limited = host.mirror.metrics.limited
            pulls = [asyncio.create_task(host.get(Digest.of(data))) for data in contents]
            await until(lambda: limited.value("relay_memory") == 6, within=60)
            resume.set()
            assert sorted([(await pull).status for pull in pulls]) == [200] * 2 + [404] * 6
            assert (await host.get(Digest.of(contents[0]))).body == contents[0]
            together = await asyncio.gather(*(host.get(Digest.of(data)) for data in contents))
            assert [result.body for result in together] == contents
