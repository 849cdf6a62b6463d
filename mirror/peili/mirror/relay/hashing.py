"""Threads that hash for transfers, so that the loop answers others meanwhile. hashlib lets go of the interpreter."""

from __future__ import annotations

import asyncio
import itertools
import os
from concurrent.futures import ThreadPoolExecutor

from peili.mirror.limits import KIB
from peili.mirror.relay.verify import Piece, Verifier

_WORTH_IT = 32 * KIB
"""Bytes that are hashed in less time than another thread takes to begin."""
_THREADS = 4


class Hasher:
    """A few threads for one mirror. `close` when done; what is hashed later, is on the loop."""

    def __init__(self) -> None:
        self._lanes = [Lane() for _ in range(min(_THREADS, os.cpu_count() or 1))]
        self._turns = itertools.cycle(self._lanes)

    def lane(self) -> Lane:
        """The thread whose turn it is, for one transfer to use throughout."""
        return next(self._turns)

    def close(self) -> None:
        """End the threads, after what they do now: that is a matter of milliseconds. Idempotent."""
        for lane in self._lanes:
            lane.close()


class Lane:
    """One thread, which takes pieces in the order in which they were given.

    So the next ones may be given ahead: a thread that had to wait for the loop between two would be idle half of its
    time (measured).
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="peili hash")
        self._under_way = 0

    def feed(self, verifier: Verifier, piece: memoryview) -> asyncio.Future[Piece]:
        """What ``verifier.feed(piece)`` gives. May be called again before that is known."""
        loop = asyncio.get_running_loop()
        if self._thread is None or (not self._under_way and len(piece) < _WORTH_IT):
            here: asyncio.Future[Piece] = loop.create_future()
            here.set_result(verifier.feed(piece))
            return here
        self._under_way += 1
        there = loop.run_in_executor(self._thread, verifier.feed, piece)
        there.add_done_callback(self._done)
        return there

    def close(self) -> None:
        """End the thread, after what it was given. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown()

    def _done(self, _: asyncio.Future[Piece]) -> None:
        self._under_way -= 1
