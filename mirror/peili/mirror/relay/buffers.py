"""The memory in which relays work. It is bounded, shared by all transfers, and freed when a transfer ends."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Generator
from contextlib import contextmanager

from peili.mirror.limits import KIB, MIB

RING_LENGTH = 5
"""Buffers of one transfer: one is sent, one is withheld, one is hashed, one is read, and one is spare."""
_LARGEST = 4 * MIB
"""Bytes of a buffer. Each buffer costs several hand-overs between threads, which take time on a busy machine: 1 GiB
took 1.24 CPU seconds in buffers of 0.8 MiB and 0.95 in these, and was 1.25 times as fast.
"""
_SMALLEST = 32 * KIB
_SMALL_CONTENT = 64 * KIB
"""Content up to this many bytes has reserved room that larger content cannot take. Most manifests are smaller."""


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
        share = min(_LARGEST, max(0, self._max_bytes - self._reserved) // (RING_LENGTH * self._rings), self._available)
        size = max(_SMALLEST, share // KIB * KIB)
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
        """Wait for the next free buffer. Until `mark_filled` is called, it is the same one again."""
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
