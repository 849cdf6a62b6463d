"""One holder's answer to a request for content, checked for being what was asked for, and watched while it comes."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from peili.mirror.errors import PeerUnavailable
from peili.mirror.limits import KIB, Limits
from peili.mirror.patience import Patience
from peili.mirror.peerclient import PeerClient, reading
from peili.mirror.peerconnection import Answer
from peili.mirror.peers import (
    FAILED_BUSY,
    FAILED_REFUSED,
    FAILED_SILENT,
    FAILED_SLOW,
    FAILED_WRONG,
    Peer,
)
from peili.mirror.ranges import ByteRange, Span, parse_content_range
from peili.mirror.references import Digest
from peili.mirror.relay.peer_health import Others, Outrun, Pull

_START = 96 * KIB
"""Bytes that a holder has to have sent to win a race, or all of them."""


class _Pace:
    """How fast a peer sends, counting only the time that it was waited for: a slow reader blames nobody."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bytes = 0
        self._waited = 0.0

    def is_slow(self, count: int, waited: float) -> bool:
        """Note `count` bytes after `waited` seconds; whether the last window full of waiting gave too little."""
        self._bytes += count
        self._waited += waited
        if self._waited < self._limits.rate_window:
            return False
        slow = self._bytes < self._limits.min_rate * self._waited
        self._bytes, self._waited = 0, 0.0
        return slow


class Source:
    """Content on its way from one peer, its first bytes in hand. One owner, who calls `aclose`.

    `span` is what the peer will send; `offset` is the next byte of the content, all before it were read or spliced.
    Both raise PeerUnavailable with the reason, and nobody else's errors.
    """

    def __init__(self, peer: Peer, span: Span, answer: Answer, limits: Limits, pull: Pull) -> None:
        self.peer = peer
        self.span = span
        self.offset = span.start
        self.pull = pull
        self._answer = answer
        self._stall_timeout = limits.stall_timeout
        self._switch_delay = limits.switch_delay
        self._counted = min(limits.stall_timeout, limits.rate_window / 2)
        self._pace = _Pace(limits)

    @classmethod
    async def open(
        cls,
        client: PeerClient,
        peer: Peer,
        path: str,
        digest: Digest,
        *,
        wanted: ByteRange | None,
        limits: Limits,
        check: Callable[[Peer, Span], None],
        others: Others,
    ) -> Source:
        """Ask `peer`; returns once the first bytes are here. Raises PeerUnavailable with the reason.

        `check` sees what the answer's head says before any of the body is read, and may raise PeerUnavailable.
        `others` is for `Pull`.
        """
        headers = {"Range": str(wanted)} if wanted else {}
        with ExitStack() as stack:
            try:
                async with Patience(limits.first_byte_timeout):
                    answer = await client.open("GET", peer, path, timeout=limits.stall_timeout, headers=headers)
                    stack.callback(answer.close)
                    span = _span(peer, answer, digest, wanted)
                    check(peer, span)
                    with reading(peer):
                        await answer.begin()
            except TimeoutError as error:
                raise PeerUnavailable(f"peer {peer.id}: no first byte in time", FAILED_SILENT) from error
            stack.pop_all()
            return cls(peer, span, answer, limits, Pull(limits, others))

    @property
    def left(self) -> int:
        """How many bytes are still to come."""
        return self.span.stop - self.offset

    @property
    def early(self) -> int:
        """How many bytes have come already."""
        return self._answer.early

    async def fill(self) -> None:
        """Wait for a start that shows that more than a first byte comes."""
        with reading(self.peer):
            await self._answer.fill(_START)

    @property
    def can_splice(self) -> bool:
        """Whether `splice` can be used for what comes next."""
        return self._answer.can_splice and not self._answer.early

    async def readinto(self, buffer: memoryview) -> int:
        """Wait for bytes, and read as many as have come; 0 only at the end."""
        return await self._waited_for(lambda: self._answer.readinto(buffer))

    async def splice(self, pipe: int, count: int) -> int:
        """As `readinto`, for up to `count` bytes, into a pipe, which must have room."""
        return await self._waited_for(lambda: self._answer.splice(pipe, count))

    async def aclose(self) -> None:
        """Free the connection. Idempotent."""
        self._answer.close()

    async def _waited_for(self, read: Callable[[], Awaitable[int]]) -> int:
        asked = time.monotonic()
        with reading(self.peer):
            count = await self._arrived(read)
        waited = time.monotonic() - asked
        # It may be that this host stood still meanwhile. So one waiting, however long, makes no peer slow.
        if self._pace.is_slow(count, min(waited, self._counted)):
            raise PeerUnavailable(f"peer {self.peer.id} sends too slowly", FAILED_SLOW)
        self.offset += count
        self.pull.note(count, min(waited, self._switch_delay / 2))
        return count

    async def _arrived(self, read: Callable[[], Awaitable[int]]) -> int:
        """What `read` gives; its peer is left for another after a shorter silence than where there is none."""
        if self.pull.slow and await self.pull.others(self.pull.rate):
            raise Outrun(f"peer {self.peer.id} sends more slowly than others", FAILED_SLOW)
        self.pull.slow = False
        left = self._stall_timeout - self._switch_delay
        if left > 0:
            try:
                async with Patience(self._switch_delay):
                    return await read()
            except TimeoutError as error:
                if await self.pull.others(0):
                    raise Outrun(f"peer {self.peer.id} sends nothing more", FAILED_SILENT) from error
        async with Patience(left if left > 0 else self._stall_timeout):
            return await read()


def _span(peer: Peer, answer: Answer, digest: Digest, wanted: ByteRange | None) -> Span:
    """What `answer` carries. Raises PeerUnavailable where it is not the content, or not the part, asked for."""
    status = answer.head.status
    if status in {429, 503}:
        raise PeerUnavailable(f"peer {peer.id} is busy", FAILED_BUSY)
    if status not in {200, 206}:
        raise PeerUnavailable(f"peer {peer.id} answered {status}", FAILED_REFUSED)
    if answer.length is None:  # as behind a proxy that sends chunks, which is no lie
        raise PeerUnavailable(f"peer {peer.id} does not say how many bytes it sends", FAILED_REFUSED)
    try:
        span = _carried(answer, answer.length, digest)
        asked = wanted.within(span.size) if wanted else Span.whole(span.size)
    except ValueError as error:
        raise PeerUnavailable(f"peer {peer.id}: not what was asked for: {error}", FAILED_WRONG) from error
    if span != asked:  # it says what it sends, so this is no lie
        carried, part = span.content_range, wanted or "the whole"
        raise PeerUnavailable(f"peer {peer.id} sends {carried} where {part} was asked for", FAILED_REFUSED)
    return span


def _carried(answer: Answer, length: int, digest: Digest) -> Span:
    """What `answer` says it carries. Raises ValueError where that can't be, or can't be used."""
    headers = answer.head.headers
    if headers.get("docker-content-digest", digest) != digest:
        raise ValueError(f"its digest is {headers['docker-content-digest']}")
    if headers.get("content-encoding", "identity") != "identity":
        raise ValueError(f"it is encoded: {headers['content-encoding']}")
    whole = answer.head.status == 200
    span = Span.whole(length) if whole else parse_content_range(headers.get("content-range", ""))
    if span.length != length:
        raise ValueError(f"{length} bytes came as {span.content_range}")
    return span
