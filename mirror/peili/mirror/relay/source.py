"""One holder's answer to a request for content, checked for being what was asked for, and watched while it comes."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from peili.mirror.client.client import PeerClient, map_exceptions
from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.limits import Limits
from peili.mirror.oci.ranges import ByteRange, Span, Unsatisfiable, parse_content_range, parse_unsatisfied_range
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.peers import Peer
from peili.mirror.relay.headonly import HeadOnly
from peili.mirror.relay.parallel import Turns
from peili.mirror.relay.windows import Asking, Body, open_in_windows
from peili.mirror.support.deadlines import Deadline


class OutOfRange(PeerUnavailable):
    """A peer has the content, of `size` bytes, as it says; none of them is in the range that was asked for."""

    def __init__(self, peer: Peer, wanted: ByteRange, size: int) -> None:
        super().__init__(f"peer {peer.id} says that no byte of {size} is in {wanted}", FailureReason.REFUSED)
        self.size = size


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
    Both raise PeerUnavailable with the reason, and nobody else's errors. One task reads, and none after an error: bytes
    that had come may be lost then.
    """

    def __init__(self, asking: Asking, span: Span, answer: Body, limits: Limits) -> None:
        self.peer = asking.peer
        self.span = span
        self.offset = span.start
        self.began = time.monotonic()
        self._asking = asking
        self._answer = answer
        self._waited = 0.0
        self._waits: tuple[float, Deadline] | None = None  # since when, for the read that is under way
        self._left_for: PeerUnavailable | None = None
        self._stall_timeout = limits.stall_timeout
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
        turns: Turns | None = None,
        method: str = "GET",
    ) -> Source:
        """Ask `peer`; returns once the first bytes are here. Raises PeerUnavailable with the reason.

        `check` sees what the answer's head says before any of the body is read, and may raise PeerUnavailable. With
        `turns`, `wanted` is asked for in windows, each in its turn. Asked by HEAD, the peer says what it would send,
        and nothing can be read.
        """
        with ExitStack() as stack:
            try:
                async with Deadline(limits.first_byte_timeout):
                    asking = Asking(client, peer, path, limits.stall_timeout, turns, method=method)
                    answer = await _ask(asking, wanted)
                    stack.callback(answer.close)
                    span = _span(peer, answer, digest, wanted)
                    check(peer, span)
                    with map_exceptions(peer):
                        await answer.begin()
            except TimeoutError as error:
                raise PeerUnavailable(f"peer {peer.id}: no first byte in time", FailureReason.SILENT) from error
            stack.pop_all()
            return cls(asking, span, answer, limits)

    @property
    def media_type(self) -> str | None:
        """What the peer says that it is of; a claim."""
        return self._answer.head.header("content-type")

    @property
    def left(self) -> int:
        """How many bytes are still to come."""
        return self.span.stop - self.offset

    @property
    def can_splice(self) -> bool:
        """Whether `splice` can be used for what comes next."""
        return self._answer.can_splice and not self._answer.buffered

    def progress(self) -> tuple[int, float] | None:
        """How many bytes have come, and for how many seconds they were waited for; None: the peer is not asked now."""
        if self._asking.queues:
            return None
        waits = time.monotonic() - self._waits[0] if self._waits is not None else 0.0
        return self.span.length - self._answer.left, self._waited + waits

    def leave(self, error: PeerUnavailable) -> None:
        """Another is better: the read that is under way, or else the next one, raises `error`."""
        self._left_for = error
        if self._waits is not None:
            self._waits[1].end()

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
        if self._left_for is not None:
            raise self._left_for
        asked = time.monotonic()
        try:
            with map_exceptions(self.peer):
                async with Deadline(self._stall_timeout) as patience:
                    self._waits = asked, patience
                    try:
                        count = await read()
                    finally:
                        self._waits = None
        except PeerUnavailable:
            if self._left_for is not None:
                raise self._left_for from None
            raise
        waited = time.monotonic() - asked
        self._waited += waited
        # It may be that this host stood still meanwhile. So one waiting, however long, makes no peer slow.
        if self._pace.is_slow(count, min(waited, self._counted)):
            raise PeerUnavailable(f"peer {self.peer.id} sends too slowly", FailureReason.SLOW)
        self.offset += count
        return count


async def _ask(asking: Asking, wanted: ByteRange | None) -> Body:
    if asking.turns is not None and wanted is not None:
        return await open_in_windows(asking, wanted)
    answer, _ = await asking.open(wanted)
    return answer if asking.method == "GET" else HeadOnly(answer)


def _span(peer: Peer, answer: Body, digest: Digest, wanted: ByteRange | None) -> Span:
    """What `answer` carries. Raises PeerUnavailable where it is not the content, or not the part, asked for."""
    status = answer.head.status
    if status in {429, 503}:
        raise PeerUnavailable(f"peer {peer.id} is busy", FailureReason.BUSY)
    if status == 416 and wanted is not None:
        raise _beyond(peer, answer, wanted)
    if status not in {200, 206}:
        raise PeerUnavailable(f"peer {peer.id} answered {status}", FailureReason.REFUSED)
    if answer.length is None:  # as behind a proxy that sends chunks, which is no lie
        raise PeerUnavailable(f"peer {peer.id} does not say how many bytes it sends", FailureReason.REFUSED)
    try:
        span = _carried(answer, answer.length, digest)
        asked = wanted.within(span.size) if wanted else Span.whole(span.size)
    except ValueError as error:
        if isinstance(error, Unsatisfiable) and wanted is not None and status == 200:
            raise OutOfRange(peer, wanted, error.size) from error  # it takes no notice of ranges, which is no lie
        raise PeerUnavailable(f"peer {peer.id}: not what was asked for: {error}", FailureReason.WRONG) from error
    if span != asked:  # it says what it sends, so this is no lie
        carried, part = span.content_range, wanted or "the whole"
        raise PeerUnavailable(f"peer {peer.id} sends {carried} where {part} was asked for", FailureReason.REFUSED)
    return span


def _beyond(peer: Peer, answer: Body, wanted: ByteRange) -> PeerUnavailable:
    """What to raise where a peer says that nothing is in the range `wanted`."""
    try:
        size = parse_unsatisfied_range(answer.head.headers.get("content-range", ""))
        part = wanted.within(size)
    except Unsatisfiable as error:
        return OutOfRange(peer, wanted, error.size)
    except ValueError as error:
        return PeerUnavailable(f"peer {peer.id} answered 416: {error}", FailureReason.REFUSED)
    return PeerUnavailable(f"peer {peer.id} answered 416, though it has {part.content_range}", FailureReason.REFUSED)


def _carried(answer: Body, length: int, digest: Digest) -> Span:
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
