"""The ring: it returns the right bytes, or says that it no longer has them."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peili.mirror import Limits
from peili.mirror.content.ring import ContentRing, RingMemory

MIB = 1 << 20


def read(ring: ContentRing, offset: int, count: int) -> bytes | None:
    buffer = bytearray(b"\xff" * count)
    copied = ring.readinto(offset, memoryview(buffer))
    return None if copied is None else bytes(buffer[:copied])


@given(
    capacity=st.integers(1, 20),
    start=st.integers(0, 50),
    pieces=st.lists(st.integers(0, 50), max_size=10),
    reads=st.lists(st.tuples(st.integers(0, 120), st.integers(1, 30)), max_size=10),
)
def test_it_has_the_last_bytes(capacity: int, start: int, pieces: list[int], reads: list[tuple[int, int]]) -> None:
    ring, data = ContentRing(capacity, start), bytes(offset % 251 for offset in range(start))
    for length in pieces:
        piece = bytes((len(data) + offset) % 251 for offset in range(length))
        ring.append(memoryview(piece))
        data += piece
        assert ring.stop == len(data)
        assert ring.start == max(start, len(data) - capacity)
        for offset, count in reads:
            found = read(ring, offset, count)
            if offset < ring.start:
                assert found is None
            else:
                assert found is not None
                assert bool(found) == (offset < len(data))
                assert data[offset : offset + count].startswith(found)


def test_it_is_read_to_its_end_around_its_seam() -> None:
    ring = ContentRing(10, 3)
    ring.append(memoryview(bytes(range(3, 18))))
    data = bytearray()
    while piece := read(ring, 8 + len(data), 100):
        data += piece
    assert data == bytes(range(8, 18))


def test_the_memory_is_bounded() -> None:
    limited: list[str] = []
    memory = RingMemory(Limits(ring_memory=8 * MIB, ring_size=4 * MIB), limited.append)
    rings = [memory.lend(0, None) for _ in range(4)]
    assert [ring.capacity // MIB if ring is not None else None for ring in rings] == [4, 2, 1, None]
    assert limited == ["ring_memory"]
    for ring in rings[:3]:
        assert ring is not None
        memory.take_back(ring)
    again = memory.lend(0, None)
    assert again is not None
    assert again.capacity == 4 * MIB


@pytest.mark.parametrize(("start", "size", "capacity"), [(0, 100, 100), (40, 100, 60), (0, 0, 1), (100, 100, 1)])
def test_a_ring_is_no_larger_than_its_content(start: int, size: int, capacity: int) -> None:
    ring = RingMemory(Limits(), lambda _: None).lend(start, size)
    assert ring is not None
    assert ring.capacity == capacity


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "no memory"), MemoryError()], ids=repr)
def test_if_the_system_has_no_memory_there_is_no_ring(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(_: int) -> memoryview:
        raise error

    limited = list[str]()
    memory = RingMemory(Limits(ring_memory=4 * MIB, ring_size=4 * MIB), limited.append)
    with monkeypatch.context() as patch:
        patch.setattr("peili.mirror.content.ring.new_memory", no_memory)
        assert memory.lend(0, None) is None
    assert limited == ["ring_memory"]
    ring = memory.lend(0, None)
    assert ring is not None
    assert ring.capacity == 4 * MIB
