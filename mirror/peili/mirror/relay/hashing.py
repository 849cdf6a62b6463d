"""Threads that hash for transfers, so that the loop answers others meanwhile. hashlib lets go of the interpreter."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from peili.mirror.limits import KIB
from peili.mirror.relay.verifier import Piece, Verifier

_WORTH_IT = 32 * KIB
"""Bytes that are hashed in less time than another thread takes to begin."""
_THREADS = 4


class Hasher:
    """Hashes off the loop, for one mirror. `close` when done; what is hashed later, is on the loop."""

    def __init__(self) -> None:
        threads = min(_THREADS, os.cpu_count() or 1)
        self._threads: ThreadPoolExecutor | None = ThreadPoolExecutor(threads, thread_name_prefix="peili hash")

    def feed(self, verifier: Verifier, piece: memoryview) -> asyncio.Future[Piece]:
        """What ``verifier.feed(piece)`` gives. One at a time for each verifier."""
        loop = asyncio.get_running_loop()
        if len(piece) >= _WORTH_IT and self._threads is not None:
            return loop.run_in_executor(self._threads, verifier.feed, piece)
        fed: asyncio.Future[Piece] = loop.create_future()
        fed.set_result(verifier.feed(piece))
        return fed

    def close(self) -> None:
        """End the threads, after what they do now: that is a matter of a millisecond. Idempotent."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()
