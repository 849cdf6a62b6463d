"""Content that arrives at a host, as other hosts read it: from the ring, and from what the store shows."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Aborted, Content, Digest, Limits
from peili.mirror.content.incoming import IncomingTable, Tap
from peili.mirror.content.incoming_content import IncomingContent
from peili.mirror.peer_api.keys import InFlight
from peili.mirror.testing import Arrival, ContentSubject, check_content
from peili.stores.memory import MemoryIngest, MemoryStore

pytestmark = pytest.mark.anyio

DATA = os.urandom(300_000)
DIGEST = Digest.of(DATA)
NEVER = 600.0


class Receiver:
    """A host that receives `data`: its table, one transfer, and its store with an ingest."""

    def __init__(self, data: bytes = DATA, **limits: Any) -> None:
        self.limited: list[str] = []
        values: dict[str, Any] = {"ring_size": 4096, "claim_timeout": NEVER, **limits}
        all_limits = Limits(**values)
        self.table = IncomingTable("me", all_limits, self.limited.append)
        self.data = data
        self.digest = Digest.of(data)
        self.store = MemoryStore()
        self.ingest: MemoryIngest | None = None
        self.is_blind = False  # whether the store shows nothing
        self.tap = self.table.open_tap(self.digest)
        self.tap.read_from(lambda: ("feeder", "root"), size=len(data), needs_ring=True)

    def receive(self, start: int, stop: int, tap: Tap | None = None) -> None:
        (tap or self.tap).write(start, memoryview(self.data)[start:stop])

    def store_bytes(self, stop: int) -> None:
        """Let the runtime write all bytes before `stop`."""
        if self.ingest is None:
            self.ingest = self.store.begin(self.digest, len(self.data))
        self.ingest.write(self.data[len(self.ingest.data) : stop])

    def close(self, *, is_abandoned: bool = False, is_expected: bool = True) -> None:
        self.tap.close(is_abandoned=is_abandoned, is_expected=is_expected)

    def open(self) -> IncomingContent:
        incoming = self.table.get(self.digest)
        assert incoming is not None
        is_blind = self.is_blind
        return IncomingContent(incoming, None if is_blind else partial(self.store.open, self.digest, partial=True))


async def read(content: Content, start: int, stop: int) -> bytes:
    """Read as the peer door does: wait for bytes, and read them."""
    data = bytearray()
    async with asyncio.timeout(60):
        while start + len(data) < stop:
            await content.wait(start + len(data))
            buffer = bytearray(stop - start - len(data))
            data += buffer[: await content.readinto(start + len(data), memoryview(buffer))]
    return bytes(data)


async def stays_pending(waiting: Callable[[], Awaitable[object]]) -> asyncio.Future[object]:
    """Start to wait, and check that nothing is there yet."""
    task = asyncio.ensure_future(waiting())
    await asyncio.wait([task], timeout=0.05)
    assert not task.done()
    return task


class _Arrival(Arrival):
    """The relay receives the bytes, and the runtime writes them; if it `is_late`, only when the next ones arrive."""

    def __init__(self, receiver: Receiver, *, is_late: bool) -> None:
        self._receiver = receiver
        self._received = 0
        self._is_late = is_late

    @override
    async def write(self, data: bytes) -> None:
        written, self._received = self._received, self._received + len(data)
        self._receiver.receive(written, self._received)
        self._receiver.store_bytes(written if self._is_late else self._received)

    @override
    async def commit(self) -> None:
        self._receiver.close()
        self._receiver.store_bytes(self._received)
        assert self._receiver.ingest is not None
        self._receiver.ingest.commit()

    @override
    async def abort(self) -> None:
        self._receiver.close(is_abandoned=True, is_expected=False)


@pytest.mark.parametrize("ring_size", [1, 5000, 1_000_000])
async def test_it_keeps_the_promises_of_content(ring_size: int) -> None:
    @asynccontextmanager
    async def ingest() -> AsyncGenerator[ContentSubject]:
        receiver = Receiver(ring_size=ring_size)
        yield ContentSubject(receiver.open(), DATA, _Arrival(receiver, is_late=ring_size > len(DATA)))

    await check_content(ingest)


@given(
    ring_size=st.integers(1, 300),
    steps=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(1, 300)), min_size=1, max_size=8),
)
def test_whatever_is_where_a_reader_gets_the_right_bytes(ring_size: int, steps: list[tuple[int, int, int]]) -> None:
    """In each step, some bytes are received, the store shows some of them, and a reader wants some of them."""

    async def run() -> None:
        receiver, received, stored = Receiver(DATA[:1000], ring_size=ring_size), 0, 0
        async with receiver.open() as content:
            for arrive, store, want in steps:
                start, received = received, min(1000, received + arrive)
                receiver.receive(start, received)
                stored = max(stored, min(received, stored + store))
                receiver.store_bytes(stored)
                offset = want % (received + 1)
                incoming = receiver.table.get(receiver.digest)
                ring = None if incoming is None else incoming.ring
                in_ring = ring is not None and ring.start <= offset < received
                if offset < stored or in_ring:
                    assert await content.wait(offset) > offset
                    buffer = bytearray(want)
                    count = await content.readinto(offset, memoryview(buffer))
                    assert count
                    assert buffer[:count] == DATA[offset : offset + count]
                elif offset == received:
                    assert not await content.readinto(offset, memoryview(bytearray(1)))
            receiver.receive(received, 1000)
            receiver.store_bytes(1000)
            assert await read(content, 0, 1000) == DATA[:1000]

    asyncio.run(run())


async def test_a_reader_follows_the_ring_where_the_store_shows_nothing() -> None:
    receiver = Receiver()
    receiver.is_blind = True
    async with receiver.open() as content:
        for start in range(0, 20_000, 4000):
            receiver.receive(start, start + 4000)
            assert await read(content, start, start + 4000) == DATA[start : start + 4000]
        with pytest.raises(Aborted, match="no longer in memory"):
            await content.readinto(0, memoryview(bytearray(10)))
        with pytest.raises(Aborted, match="no longer in memory"):
            await content.prepare(0)
        await content.prepare(19_000)


async def test_bytes_that_have_left_the_ring_are_waited_for_in_the_store() -> None:
    receiver = Receiver()
    async with receiver.open() as content:
        receiver.receive(0, 20_000)
        receiver.store_bytes(5000)
        reading = await stays_pending(lambda: read(content, 10_000, 11_000))
        receiver.store_bytes(12_000)
        assert await reading == DATA[10_000:11_000]
        assert await read(content, 16_000, 20_000) == DATA[16_000:20_000]


async def test_a_late_reader_gets_the_beginning_from_the_store_and_then_the_ring() -> None:
    receiver = Receiver()
    receiver.tap.read_from(lambda: ("whole",), needs_ring=False)
    receiver.receive(0, 10_000)
    receiver.store_bytes(8000)
    incoming = receiver.table.get(DIGEST)
    assert incoming is not None
    assert not receiver.tap.is_wanted
    assert incoming.ring is None, "without a reader, nothing is copied"
    async with receiver.open() as content:
        assert receiver.tap.is_wanted
        assert await read(content, 0, 8000) == DATA[:8000]
        receiver.receive(10_000, 12_000)
        waiting = await stays_pending(lambda: read(content, 8000, 12_000))
        receiver.store_bytes(10_000)
        assert await waiting == DATA[8000:12_000]
        assert incoming.ring is not None


async def test_a_runtime_that_goes_upstream_is_followed() -> None:
    receiver = Receiver()
    async with receiver.open() as content:
        receiver.receive(0, 4000)
        receiver.close()
        assert receiver.table.state(DIGEST) == InFlight(4000, len(DATA), ("me",), None)
        waiting = await stays_pending(lambda: read(content, 0, 9000))
        receiver.store_bytes(9000)
        assert await waiting == DATA[:9000]


async def test_without_bytes_in_time_nothing_is_expected() -> None:
    receiver = Receiver(claim_timeout=0.1)
    async with receiver.open() as content:
        receiver.close()
        with pytest.raises(Aborted):
            await content.wait(0)
    assert receiver.table.get(DIGEST) is None


async def test_bytes_in_the_store_are_followed_for_longer() -> None:
    receiver = Receiver(claim_timeout=0.1)
    async with receiver.open() as content:
        receiver.store_bytes(10)
        receiver.close()
        waiting = await stays_pending(lambda: read(content, 0, 20))
        await until(lambda: receiver.table.get(DIGEST) is None)
        assert not waiting.done()
        receiver.store_bytes(20)
        assert await waiting == DATA[:20]


async def test_a_runtime_that_disconnects_is_waited_for_only_for_a_moment() -> None:
    receiver = Receiver(claim_timeout=0.1)
    async with receiver.open() as content:
        receiver.receive(0, 10)
        receiver.store_bytes(10)
        receiver.close(is_abandoned=True)
        assert await read(content, 0, 10) == DATA[:10]
        with pytest.raises(Aborted, match="disconnected"):
            await content.wait(10)


async def test_a_runtime_that_comes_back_continues() -> None:
    receiver = Receiver(claim_timeout=0.2)
    async with receiver.open() as content:
        receiver.receive(0, 10)
        receiver.close(is_abandoned=True)
        tap = receiver.table.open_tap(DIGEST)
        await asyncio.sleep(0.3)  # longer than the time for which a runtime that disconnected is waited for
        receiver.receive(10, 20, tap)
        assert await read(content, 0, 20) == DATA[:20]


async def test_if_nothing_is_expected_the_end_comes_at_once() -> None:
    receiver = Receiver()
    async with receiver.open() as content:
        waiting = await stays_pending(lambda: content.wait(0))
        receiver.close(is_expected=False)
        with pytest.raises(Aborted):
            await waiting
    assert receiver.table.get(DIGEST) is None


async def test_after_wrong_bytes_readers_are_cut_off_and_new_ones_get_the_right_ones() -> None:
    receiver = Receiver()
    async with receiver.open() as before:
        receiver.tap.write(0, memoryview(b"wrong"))
        waiting = await stays_pending(lambda: before.wait(5))
        receiver.tap.discard_bytes()
        for task in (waiting, before.wait(0), before.readinto(0, memoryview(bytearray(5)))):
            with pytest.raises(Aborted, match="wrong"):
                await task
        receiver.receive(0, 100)
        async with receiver.open() as after:
            assert await read(after, 0, 100) == DATA[:100]


async def test_two_transfers_fill_one_ring() -> None:
    receiver = Receiver()
    async with receiver.open() as content:
        tap = receiver.table.open_tap(DIGEST)
        receiver.receive(0, 1000)
        receiver.receive(0, 500, tap)
        receiver.receive(500, 2000, tap)
        receiver.receive(1000, 1500)
        receiver.receive(3000, 3500)  # a part of a parallel fetch: the bytes before it are missing
        receiver.close()
        receiver.receive(2000, 2500, tap)
        assert await read(content, 0, 2500) == DATA[:2500]
        assert content.available == 2500


async def test_the_size_is_waited_for() -> None:
    receiver = Receiver()
    unknown = receiver.table.open_tap(Digest.of(b"unknown"))
    incoming = receiver.table.get(Digest.of(b"unknown"))
    assert incoming is not None
    async with IncomingContent(incoming, partial(receiver.store.open, Digest.of(b"unknown"), partial=True)) as content:
        assert content.size is None
        waiting = await stays_pending(lambda: content.prepare(0))
        unknown.read_from(lambda: ("feeder",), size=7, needs_ring=True)
        await waiting
        assert content.size == 7
    unknown.close(is_abandoned=False, is_expected=False)


async def test_the_state_says_where_the_bytes_come_from() -> None:
    receiver = Receiver()
    assert receiver.table.state(DIGEST) == InFlight(0, len(DATA), ("me", "feeder", "root"), "feeder")
    receiver.tap.stop_reading()
    assert receiver.table.state(DIGEST) == InFlight(0, len(DATA), ("me",), None)
    receiver.receive(0, 100)
    receiver.close()
    assert receiver.table.state(DIGEST) == InFlight(100, len(DATA), ("me",), None)
    assert receiver.table.state(Digest.of(b"other")) is None


async def test_the_memory_is_given_back() -> None:
    receiver = Receiver(ring_memory=4096)
    content = receiver.open()
    receiver.receive(0, 100)
    other = receiver.table.open_tap(Digest.of(b"other"))
    other.read_from(lambda: ("feeder",), size=10_000, needs_ring=True)
    other.write(0, memoryview(b"some"))
    assert receiver.limited == ["ring_memory"]
    receiver.close(is_expected=False)
    other.write(4, memoryview(b"more"))
    assert receiver.limited == ["ring_memory"] * 2, "a reader still has the ring"
    await content.aclose()
    other.write(8, memoryview(b"more"))
    assert receiver.limited == ["ring_memory"] * 2
    other.close(is_abandoned=False, is_expected=True)
    receiver.table.clear()
    assert receiver.table.get(Digest.of(b"other")) is None
    again = receiver.table.open_tap(DIGEST)
    again.read_from(lambda: ("feeder",), size=10_000, needs_ring=True)
    again.write(0, memoryview(b"some"))
    assert receiver.limited == ["ring_memory"] * 2
    again.close(is_abandoned=False, is_expected=False)


@pytest.mark.parametrize("count", [3000])
async def test_what_is_expected_is_bounded(count: int) -> None:
    registry = IncomingTable("me", Limits(claim_timeout=NEVER), lambda _: None)
    digests = [Digest.of(str(number).encode()) for number in range(count)]
    for digest in digests:
        registry.open_tap(digest).close(is_abandoned=False, is_expected=True)
    known = [digest for digest in digests if registry.get(digest) is not None]
    assert known == digests[-1024:]
    registry.clear()
