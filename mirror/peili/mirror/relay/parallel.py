"""Who may ask which peer for a part now: the parts of blobs that this host's runtime asks for, many at a time.

A holder gives at most so many answers at once to one host. A runtime that fetches parallel ranges would exceed that and
have no other host to ask. So parts take turns.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.limits import Limits
from peili.mirror.oci.references import Digest
from peili.mirror.support.broadcast import Broadcast

T = TypeVar("T")

_PAUSE = 0.25
"""Seconds after which a busy holder is asked again, whether a transfer has ended here or not: the holder may notice
later than this host that an answer was closed.
"""
_PATIENCE = 1.0
"""Seconds that a part waits for others of the same peer, before the time that a peer gets for its answer is over."""
_RECENT = 5.0
"""Seconds for which a transfer that ended may be what a holder is busy with."""
_CLOSED = 2
"""So many answers of one blob that the runtime has closed of late show that it fetches in parallel. One may be of a
runtime that was stopped and resumes.
"""
_MOST = 4096
"""Blobs remembered as recent."""


class Turns:
    """Counts what is under way, per blob and per peer. Used on one loop."""

    def __init__(self, limits: Limits, limited: Callable[[str], None]) -> None:
        self._limits = limits
        self._limited = limited
        self._of_blob: Counter[Digest] = Counter()
        self._ended: dict[Digest, float] = {}
        self._closed: dict[Digest, tuple[float, ...]] = {}
        self._told: dict[Digest, float] = {}
        self._of_peer: Counter[str] = Counter()
        self._changes = Broadcast()

    @contextmanager
    def transfer(self, digest: Digest) -> Generator[None]:
        """Held while the runtime is sent `digest`, or a part of it."""
        self._of_blob[digest] += 1
        try:
            yield
        except (asyncio.CancelledError, OSError):  # the runtime is gone
            closed = self._closed.get(digest, ())
            _remember(self._closed, digest, (*closed, asyncio.get_running_loop().time())[-_CLOSED:])
            raise
        finally:
            self._of_blob[digest] -= 1
            self._of_blob += Counter()  # drops those at zero
            _remember(self._ended, digest, asyncio.get_running_loop().time())
            self._changes.notify()

    def is_shared(self, digest: Digest) -> bool:
        """Whether another transfer of `digest` is under way, or ended a moment ago: a holder may be busy with that."""
        ended = self._ended.get(digest)
        return self._of_blob[digest] > 1 or (ended is not None and _is_recent(ended))

    def is_parallel(self, digest: Digest) -> bool:
        """Whether the runtime fetches `digest` in parallel parts: another one is under way, or it closed some."""
        closed = self._closed.get(digest, ())
        return self._of_blob[digest] > 1 or (len(closed) == _CLOSED and _is_recent(closed[0]))

    def is_news(self, digest: Digest) -> bool:
        """Whether what is the same for all parts of `digest` was not told a moment ago. It counts as told then."""
        told = self._told.get(digest)
        _remember(self._told, digest, asyncio.get_running_loop().time())
        return told is None or not _is_recent(told)

    async def ask(self, peer_id: str) -> Callable[[], None]:
        """Wait until one more part may be asked of `peer_id`; gives what to call, once, when it has come.

        Raises PeerUnavailable (FailureReason.BUSY) after a while: the peer is not to blame for more.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + _PATIENCE
        while self._of_peer[peer_id] >= self._limits.parts_per_peer:
            if loop.time() > ends:
                self._limited("parts_per_peer")
                raise PeerUnavailable(f"peer {peer_id} is asked for as many parts as may be", FailureReason.BUSY)
            await self.change()
        self._of_peer[peer_id] += 1
        return partial(self._done, peer_id)

    async def change(self) -> None:
        """Wait until a transfer or a part has ended, for a moment at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PAUSE):
                await self._changes.next_change.wait()

    def _done(self, peer_id: str) -> None:
        self._of_peer[peer_id] -= 1
        self._of_peer += Counter()
        self._changes.notify()


def _is_recent(moment: float) -> bool:
    return asyncio.get_running_loop().time() - moment < _RECENT


def _remember(things: dict[Digest, T], digest: Digest, value: T) -> None:
    """As the newest; the oldest goes where there are too many."""
    things.pop(digest, None)
    things[digest] = value
    if len(things) > _MOST:
        del things[next(iter(things))]
