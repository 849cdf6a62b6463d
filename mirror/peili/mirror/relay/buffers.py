"""The memory that relays work in: bounded, shared by the transfers under way, and given back at their end."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Generator
from contextlib import contextmanager

from peili.mirror.limits import KIB, MIB

SLOTS = 5
"""Pieces of one transfer: one is sent while another is withheld, one hashed, one read; and one to spare."""
_LARGEST = 4 * MIB
"""Bytes of a piece. Each costs several hand-overs from thread to thread, which on a busy machine are waited for: 1 GiB
took 1.24 CPU seconds in pieces of 0.8 MiB and 0.95 in these, and came 1.25 times as fast.
"""
_SMALLEST = 32 * KIB
_LITTLE = 64 * KIB
"""Bytes of content for which some room is kept that larger ones can't take. Most manifests are smaller."""


class Memory:
    """Lends buffers to rings, of `most` bytes in all; where these are lent, of the least size.

    Half of `most` can be used for content that is collected whole, and an eighth more for little content. What that
    takes, the rings give back as they go on.

    Each ring's share is the same. Who began when there were fewer gives back what is too much as it goes on; until
    then later ones make do with what is left.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._left = most  # below zero where the least sizes were more than there is
        self._rings = 0
        self._collected = 0
        self._freed = asyncio.Event()

    async def collect(self, count: int) -> None:
        """Wait for room for `count` bytes that are collected whole, and take it; `give_back` it when done.

        What is larger than the room gets it alone. The wait is the caller's to bound.
        """
        while not self._has_room(count):
            self._freed.clear()
            await self._freed.wait()
        self._collected += count
        self._left -= count

    def give_back(self, count: int) -> None:
        """Free what `collect` took."""
        self._collected -= count
        self._left += count
        self._freed.set()

    def _has_room(self, count: int) -> bool:
        room = self._most // 2 + (self._most // 8 if count <= _LITTLE else 0)
        return self._collected == 0 or self._collected + count <= room

    @contextmanager
    def ring(self) -> Generator[Ring]:
        """A ring for one transfer."""
        self._rings += 1
        ring = Ring(self)
        try:
            yield ring
        finally:
            self._rings -= 1
            self._left += ring.size

    def fitting(self, buffer: memoryview) -> memoryview:
        """`buffer`, or another one in its place, which is as large as it should be now. Its content is lost."""
        self._left += len(buffer)
        share = min(_LARGEST, max(0, self._most - self._collected) // (SLOTS * self._rings), self._left)
        size = max(_SMALLEST, share // KIB * KIB)
        if not size <= len(buffer) * 2 <= 2 * size:  # it may be somewhat small, so that not all change with every ring
            # Of its own, not from the heap: what a transfer used is the system's again at its end.
            buffer = memoryview(mmap.mmap(-1, size))
        self._left -= len(buffer)
        return buffer


class Ring:
    """Buffers that are filled and freed in turn, by one task each."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._slots = [memoryview(b"")] * SLOTS
        self._used = 0
        self._freed = 0
        self._freeing = asyncio.Event()

    @property
    def size(self) -> int:
        """Bytes of all its buffers."""
        return sum(map(len, self._slots))

    async def free(self) -> memoryview:
        """The next free buffer. The same one again, until it is used."""
        while self._used - self._freed == SLOTS:
            self._freeing.clear()
            await self._freeing.wait()
        at = self._used % SLOTS
        self._slots[at] = self._memory.fitting(self._slots[at])
        return self._slots[at]

    def use(self) -> None:
        """The buffer that `free` gave is in use."""
        self._used += 1

    def give_back(self) -> None:
        """The buffer that is in use for the longest time is free."""
        self._freed += 1
        self._freeing.set()
