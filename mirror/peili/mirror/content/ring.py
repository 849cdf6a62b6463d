"""The last bytes of content that arrives, in memory. Other hosts read them before they are in a file."""

from __future__ import annotations

from collections.abc import Callable

from peili.mirror.limits import KIB, MIB, Limits
from peili.mirror.support.memory import new_memory

_SMALLEST = MIB
"""A ring for large content has at least this many bytes. A runtime's file is up to 2 MiB behind what it received."""

_SMALL = 64 * KIB
"""Below this size, the heap is quicker than a mapping."""


class ContentRing:
    """The bytes from `start` to `stop` of content. New bytes replace the oldest ones.

    Used on one event loop. Nobody has verified the bytes.

    Args:
        capacity: The largest number of bytes that it holds.
        start: The offset of the first byte in the content.
    """

    def __init__(self, capacity: int, start: int) -> None:
        self._memory = memoryview(bytearray(capacity)) if capacity < _SMALL else new_memory(capacity)
        self._first = start
        self.stop = start

    @property
    def capacity(self) -> int:
        """The largest number of bytes that it holds."""
        return len(self._memory)

    @property
    def start(self) -> int:
        """The offset of the oldest byte that it holds."""
        return max(self._first, self.stop - len(self._memory))

    def append(self, data: memoryview) -> None:
        """Add the bytes that follow at `stop`."""
        self.stop += len(data)
        kept = data[-len(self._memory) :]
        while kept:
            position = (self.stop - len(kept)) % len(self._memory)
            count = min(len(kept), len(self._memory) - position)
            self._memory[position : position + count] = kept[:count]
            kept = kept[count:]

    def readinto(self, offset: int, buffer: memoryview) -> int | None:
        """Copy bytes from `offset` on into `buffer`.

        Returns:
            How many bytes were copied; 0 if `offset` is not below `stop`, or `buffer` is empty. None if the bytes at
            `offset` are no longer here.
        """
        if offset < self.start:
            return None
        position = offset % len(self._memory)
        count = max(0, min(len(buffer), self.stop - offset, len(self._memory) - position))
        buffer[:count] = self._memory[position : position + count]
        return count


class RingMemory:
    """Lends the memory for rings: ``limits.ring_memory`` bytes in all, ``limits.ring_size`` for one.

    Each ring after the first one gets at most half of the rest, so that there is something left for others.

    Args:
        limits: See above.
        limited: Called with the name of the limit if there is too little memory for a ring.
    """

    def __init__(self, limits: Limits, limited: Callable[[str], None]) -> None:
        self._limits = limits
        self._limited = limited
        self._free = limits.ring_memory

    def lend(self, start: int, size: int | None) -> ContentRing | None:
        """Return a new ring for content from byte `start` on, or None. Give it back with `take_back`.

        Args:
            start: The first byte that the ring will hold.
            size: The size of the whole content in bytes, if known. A ring does not get larger than it.
        """
        wanted = self._limits.ring_size if size is None else min(self._limits.ring_size, max(1, size - start))
        share = wanted if self._free == self._limits.ring_memory else self._free // 2
        capacity = min(wanted, share, self._free)
        if capacity < min(wanted, _SMALLEST):
            self._limited("ring_memory")
            return None
        try:
            ring = ContentRing(capacity, start)
        except (OSError, MemoryError):  # the system has no memory: this host still receives the content
            self._limited("ring_memory")
            return None
        self._free -= capacity
        return ring

    def take_back(self, ring: ContentRing) -> None:
        """Count the memory of `ring` as free. Nobody may use the ring any more."""
        self._free += ring.capacity
