"""The memory for the content of all transfers, which is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager

from peili.mirror.errors import NotFound
from peili.mirror.limits import KIB, MIB
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.memory import new_memory

RING_LENGTH = 5
"""The number of buffers of one transfer: one each that is sent, withheld, hashed and read, and a spare one."""
_LARGEST_BUFFER = 4 * MIB
"""The largest size of a buffer in bytes. Each buffer is passed between threads several times, which takes time on a
busy machine. Measured for 1 GiB: 1.24 CPU seconds with buffers of 0.8 MiB; 0.95 with this size, and 1.25 times as fast.
"""
_SMALLEST_BUFFER = 32 * KIB
_SMALL_CONTENT = 64 * KIB
"""A part of the buffer pool is only for content up to this size in bytes. Most manifests are smaller."""


class BufferPool:
    """Lends buffers to transfers, up to `max_bytes` in total. When these are lent, further buffers have the least size.

    Up to half of the pool can be reserved for content that is collected whole, and an eighth more for small content.

    All rings have the same share of the rest. When a new ring or a reservation makes the share smaller, an older ring
    replaces its buffers by smaller ones when it uses them next. Until then, the new ring works with what is available.

    Args:
        max_bytes: The size of the pool.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._available = max_bytes  # negative while buffers of the least size exceed the pool
        self._rings = 0
        self._reserved = 0
        self._released = asyncio.Event()

    async def reserve(self, count: int) -> None:
        """Wait until `count` bytes are reserved for content that is collected whole. Call `release` at the end.

        If nothing else is reserved, any number of bytes can be. The caller bounds the wait.
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
        """Return `buffer`, or a new buffer in its place if its size is far from the current share."""
        available = self._available + len(buffer)
        share = min(_LARGEST_BUFFER, max(0, self._max_bytes - self._reserved) // (RING_LENGTH * self._rings), available)
        size = max(_SMALLEST_BUFFER, share // KIB * KIB)
        if not size <= len(buffer) * 2 <= 2 * size:  # down to half, so that a new ring does not replace all buffers
            buffer = new_memory(size)  # if the system has no memory, nothing is counted
        self._available = available - len(buffer)
        return buffer


class Reservation:
    """The bytes that one transfer has reserved. Its one owner calls `release` at the end.

    Args:
        pool: Where they are reserved.
        timeout: Seconds for which a reservation may wait.
        limited: Called with the name of the limit if that takes too long.
    """

    def __init__(self, pool: BufferPool, timeout: float, limited: Callable[[str], None]) -> None:
        self._pool = pool
        self._timeout = timeout
        self._limited = limited
        self._count = 0

    async def reserve(self, count: int) -> None:
        """Release what was reserved before, and reserve `count` bytes. Raises NotFound if there are none in time."""
        self.release()
        try:
            async with Deadline(self._timeout):
                await self._pool.reserve(count)
        except TimeoutError as error:
            self._limited("relay_memory")
            raise NotFound("no memory to collect the content") from error
        self._count = count

    def release(self) -> None:
        """Release what is reserved. Idempotent."""
        count, self._count = self._count, 0
        self._pool.release(count)


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
        """The number of bytes of all buffers."""
        return sum(map(len, self._buffers))

    async def next_buffer(self) -> memoryview:
        """Wait for the next free buffer, and return it. Returns the same one until `mark_filled` is called."""
        while self._filled - self._freed == RING_LENGTH:
            self._is_freed.clear()
            await self._is_freed.wait()
        index = self._filled % RING_LENGTH
        self._buffers[index] = self._pool.resized(self._buffers[index])
        return self._buffers[index]

    def mark_filled(self) -> None:
        """Note that the buffer that `next_buffer` returned is in use."""
        self._filled += 1

    def free_oldest(self) -> None:
        """Note that the buffer that was filled first is free again."""
        self._freed += 1
        self._is_freed.set()
