"""The threads in which a mirror hashes what it relays."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from concurrent.futures import ThreadPoolExecutor

from peili.mirror.limits import KIB, MIB
from peili.mirror.relay.verify import Piece, Verifier

_SMALL_PIECE = 32 * KIB
"""A piece of fewer bytes is hashed on the event loop. To wake another thread takes longer than that."""
_RATE_ON_LOOP = 50 * MIB
"""In bytes per second. If pieces come at a lower rate, the event loop hashes them, too: in a twentieth of its time. Of
pieces that come faster, the thread hashes one while the event loop receives the next one.
"""
_MAX_ON_LOOP = 512 * KIB
"""A larger piece is never hashed on the event loop."""
_MAX_THREADS = 4


class HashThreadPool:
    """The threads in which one mirror hashes, so that the event loop stays free. hashlib releases the GIL.

    Call `close` at the end. After that, pieces are hashed on the event loop.
    """

    def __init__(self) -> None:
        self._threads = [HashThread() for _ in range(min(_MAX_THREADS, os.cpu_count() or 1))]
        self._next = itertools.cycle(self._threads)

    def thread(self) -> HashThread:
        """Return the next thread in turn. Use the same one for all pieces of a verifier."""
        return next(self._next)

    def close(self) -> None:
        """End the threads after their current work, which takes milliseconds. Idempotent."""
        for thread in self._threads:
            thread.close()


class HashThread:
    """One thread, which hashes pieces in the order in which they are fed.

    A transfer can therefore feed pieces before the previous ones are hashed. Measured: a thread that waits for the
    event loop after each piece is idle half of the time.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="peili hash")
        self._pending = 0
        self._fed_at = float("-inf")

    def feed(self, verifier: Verifier, piece: memoryview) -> asyncio.Future[Piece]:
        """Call ``verifier.feed(piece)`` in the thread, or at once if the thread is idle and would gain nothing.

        Returns:
            A future for the result. `feed` may be called again before it is done.
        """
        loop, now = asyncio.get_running_loop(), time.monotonic()
        small = max(_SMALL_PIECE, min(_MAX_ON_LOOP, (now - self._fed_at) * _RATE_ON_LOOP))
        self._fed_at = now
        if self._executor is None or (not self._pending and len(piece) < small):
            hashed: asyncio.Future[Piece] = loop.create_future()
            hashed.set_result(verifier.feed(piece))
            return hashed
        self._pending += 1
        hashing = loop.run_in_executor(self._executor, verifier.feed, piece)
        hashing.add_done_callback(self._on_hashed)
        return hashing

    def close(self) -> None:
        """End the thread after its current work. Idempotent."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()

    def _on_hashed(self, _: asyncio.Future[Piece]) -> None:
        self._pending -= 1
