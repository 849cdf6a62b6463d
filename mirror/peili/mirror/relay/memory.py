"""The memory that relays work in: bounded, the more transfers the less for each, and given back at their end."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Generator
from contextlib import contextmanager

from peili.mirror.limits import KIB, MIB

SLOTS = 5
"""Pieces of one transfer: one is sent while another is withheld, one hashed, one read; and one to spare."""
_LARGEST = MIB
"""Bytes of a piece. Handing one from thread to thread and back costs as much as hashing 100 KiB."""
_SMALLEST = 32 * KIB


class Memory:
    """Lends rings of buffers, of `most` bytes in all; where these are lent, of the least size."""

    def __init__(self, most: int) -> None:
        self._left = most

    @contextmanager
    def ring(self) -> Generator[Ring]:
        """A ring of an eighth of what is left: so the first do not take everything, and few have enough."""
        piece = min(_LARGEST, max(_SMALLEST, self._left // (8 * SLOTS) // KIB * KIB))
        self._left -= SLOTS * piece
        try:
            yield Ring(piece)
        finally:
            self._left += SLOTS * piece


class Ring:
    """Buffers that are filled and freed in turn, by one task each."""

    def __init__(self, piece: int) -> None:
        self.piece = piece
        # Of its own, not from the heap: what a transfer used is the system's again at its end.
        self._all = memoryview(mmap.mmap(-1, SLOTS * piece))
        self._used = 0
        self._freed = 0
        self._freeing = asyncio.Event()

    async def free(self) -> memoryview:
        """The next free buffer. The same one again, until it is used."""
        while self._used - self._freed == SLOTS:
            self._freeing.clear()
            await self._freeing.wait()
        at = self._used % SLOTS * self.piece
        return self._all[at : at + self.piece]

    def use(self) -> None:
        """The buffer that `free` gave is in use."""
        self._used += 1

    def give_back(self) -> None:
        """The buffer that is in use for the longest time is free."""
        self._freed += 1
        self._freeing.set()
