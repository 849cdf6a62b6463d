"""One holder's response to a request for content: checked against the request, and read with deadlines."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import TypeAlias

from peili.mirror.client.client import PeerClient, map_exceptions
from peili.mirror.client.connection import Response, ResponseHead
from peili.mirror.content.incoming import Tap
from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.limits import Limits
from peili.mirror.oci.ranges import ByteRange, Span, Unsatisfiable, parse_content_range, parse_unsatisfied_range
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.peers import Peer
from peili.mirror.relay.parallel import ParallelRequests, PeerRequest, WindowedBody, open_in_windows
from peili.mirror.support.deadlines import Deadline

_Body: TypeAlias = Response | WindowedBody
_MAX_DIGITS = 19
"""A Content-Length with more digits is not a size."""


class OutOfRange(PeerUnavailable):
    """The peer states that it has the content, but that no byte of it is in the requested range.

    Attributes:
        size: The size of the content that the peer states, in bytes.
    """

    def __init__(self, peer: Peer, wanted: ByteRange, size: int) -> None:
        super().__init__(f"peer {peer.id} says that no byte of {size} is in {wanted}", FailureReason.REFUSED)
        self.size = size


class _RateCheck:
    """Finds out whether a peer sends too slowly.

    Only the time that this host waits for the peer counts, so that a slow runtime does not make a peer look slow.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bytes = 0
        self._waited = 0.0

    def is_slow(self, count: int, waited: float) -> bool:
        """Note that `count` bytes took `waited` seconds of waiting.

        Returns:
            Whether too few bytes arrived in the last ``rate_window`` seconds of waiting.
        """
        self._bytes += count
        self._waited += waited
        if self._waited < self._limits.rate_window:
            return False
        is_slow = self._bytes < self._limits.min_rate * self._waited
        self._bytes, self._waited = 0, 0.0
        return is_slow


class Source:
    """Content that comes from one peer. Its first bytes have arrived. Its one owner calls `aclose`.

    Only one task may read. It must not read again after an error, because bytes may be lost.

    Args:
        request: The request, for the peer and for whether it is queued.
        span: The bytes that the peer sends.
        body: The body of the response.
        limits: ``stall_timeout``, ``rate_window`` and ``min_rate`` apply to reading.

    Attributes:
        peer: The peer.
        span: The bytes that the peer sends.
        offset: The next byte of the content. All bytes before it were read or spliced.
        started: When the first bytes had arrived, by `time.monotonic`.
        tap: Gets the bytes that are read, for other hosts.
    """

    def __init__(self, request: PeerRequest, span: Span, body: _Body, limits: Limits) -> None:
        self.peer = request.peer
        self.span = span
        self.offset = span.start
        self.started = time.monotonic()
        self.tap: Tap | None = None
        self._request = request
        self._body = body
        self._waited = 0.0
        self._current_read: tuple[float, Deadline] | None = None  # when it started, and its deadline
        self._replaced: PeerUnavailable | None = None
        self._stall_timeout = limits.stall_timeout
        self._max_counted_wait = min(limits.stall_timeout, limits.rate_window / 2)
        self._rate_check = _RateCheck(limits)

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
        check_span: Callable[[Peer, Span], None],
        parallel: ParallelRequests | None = None,
        method: str = "GET",
    ) -> Source:
        """Send a request to `peer`, and wait until the first bytes of the body have arrived.

        Args:
            client: The HTTP client.
            peer: The peer to ask.
            path: The path of the content at the peer.
            digest: The content.
            wanted: The range to request; None for the whole content.
            limits: ``first_byte_timeout`` bounds this call; see also the class.
            check_span: Called with the span that the peer states, before the body is read. It may raise
                PeerUnavailable, for example because the size is wrong.
            parallel: If given, `wanted` is requested in windows, each of which waits for its turn.
            method: GET, or HEAD for a source that only states its span and cannot be read.

        Raises:
            PeerUnavailable: The peer does not send the requested bytes.
        """
        with ExitStack() as stack:
            try:
                async with Deadline(limits.first_byte_timeout):
                    request = PeerRequest(client, peer, path, limits.stall_timeout, parallel, method=method)
                    body: _Body = await (
                        request.open(wanted) if parallel is None or wanted is None else open_in_windows(request, wanted)
                    )
                    stack.callback(body.close)
                    length = body.length if method == "GET" else _content_length(body.head)
                    span = _check_response(peer, body.head, length, digest, wanted)
                    check_span(peer, span)
                    with map_exceptions(peer):
                        await body.begin()
            except TimeoutError as error:
                raise PeerUnavailable(f"peer {peer.id}: no first byte in time", FailureReason.SILENT) from error
            stack.pop_all()
            if method != "GET":
                body.close()  # there is no body, so the connection can be used again
            return cls(request, span, body, limits)

    @property
    def media_type(self) -> str | None:
        """The media type that the peer claims."""
        return self._body.head.header("content-type")

    @property
    def remaining(self) -> int:
        """The number of bytes of the span that were not read yet."""
        return self.span.stop - self.offset

    @property
    def can_splice(self) -> bool:
        """Whether the next bytes can be spliced. Not if the tap needs them."""
        is_tapped = self.tap is not None and self.tap.is_wanted
        return self._body.can_splice and not self._body.buffered and not is_tapped

    def progress(self) -> tuple[int, float] | None:
        """Return how many bytes have arrived, and how many seconds this host waited for them.

        Returns:
            None while the request waits for its turn: the peer has not received it yet.
        """
        if self._request.is_queued:
            return None
        waiting = time.monotonic() - self._current_read[0] if self._current_read is not None else 0.0
        return self.span.length - self._body.remaining, self._waited + waiting

    def interrupt(self, error: PeerUnavailable) -> None:
        """Make the current read, or else the next one, raise `error`, because another peer replaces this one."""
        self._replaced = error
        if self._current_read is not None:
            self._current_read[1].expire()

    async def readinto(self, buffer: memoryview) -> int:
        """Wait for bytes, and read those that have arrived.

        Returns:
            The number of bytes; 0 only at the end of the span.

        Raises:
            PeerUnavailable: The peer stalled, sends too slowly or ended early, or another one replaces it.
        """
        offset, count = self.offset, await self._read_with_deadline(self._body.readinto, buffer)
        if self.tap is not None:
            self.tap.write(offset, buffer[:count])
        return count

    async def splice(self, pipe: int, count: int) -> int:
        """Move up to `count` bytes into a pipe, which must have room. Otherwise like `readinto`."""
        moved = await self._read_with_deadline(self._body.splice, pipe, count)
        if self.tap is not None:
            self.tap.skip(self.offset)
        return moved

    async def aclose(self) -> None:
        """Free the connection. Idempotent."""
        self._body.close()

    async def _read_with_deadline(self, read: Callable[..., Awaitable[int]], *arguments: object) -> int:
        if self._replaced is not None:
            raise self._replaced
        started = time.monotonic()
        try:
            with map_exceptions(self.peer):
                async with Deadline(self._stall_timeout) as deadline:
                    self._current_read = started, deadline
                    try:
                        count = await read(*arguments)
                    finally:
                        self._current_read = None
        except PeerUnavailable:
            if self._replaced is not None:
                raise self._replaced from None
            raise
        waited = time.monotonic() - started
        self._waited += waited
        # This host may have been suspended during the wait. So one long wait alone does not make a peer slow.
        if self._rate_check.is_slow(count, min(waited, self._max_counted_wait)):
            raise PeerUnavailable(f"peer {self.peer.id} sends too slowly", FailureReason.SLOW)
        self.offset += count
        return count


def _content_length(head: ResponseHead) -> int | None:
    """Return the Content-Length of a response to HEAD; None if it is missing or not a size."""
    text = head.header("content-length")
    if text is None or not text.isascii() or not text.isdecimal() or len(text) > _MAX_DIGITS:
        return None
    return int(text)


def _check_response(
    peer: Peer, head: ResponseHead, length: int | None, digest: Digest, wanted: ByteRange | None
) -> Span:
    """Return the span that a response contains. Raises PeerUnavailable if that is not the requested one."""
    if head.status in {429, 503}:
        raise PeerUnavailable(f"peer {peer.id} is busy", FailureReason.BUSY)
    if head.status == 416 and wanted is not None:
        raise _out_of_range_error(peer, head, wanted)
    if head.status not in {200, 206}:
        raise PeerUnavailable(f"peer {peer.id} answered {head.status}", FailureReason.REFUSED)
    if length is None:  # for example because a proxy sends chunks: not a fault of the peer
        raise PeerUnavailable(f"peer {peer.id} does not say how many bytes it sends", FailureReason.REFUSED)
    try:
        span = _parse_span(head, length, digest)
        requested = wanted.within(span.size) if wanted else Span.whole(span.size)
    except ValueError as error:
        if isinstance(error, Unsatisfiable) and wanted is not None and head.status == 200:
            raise OutOfRange(peer, wanted, error.size) from error  # it ignores ranges, which is allowed
        raise PeerUnavailable(f"peer {peer.id}: not the requested content: {error}", FailureReason.WRONG) from error
    if span != requested:  # it states honestly what it sends
        part = wanted or "the whole"
        raise PeerUnavailable(f"peer {peer.id} sends {span.content_range}, not {part}", FailureReason.REFUSED)
    return span


def _out_of_range_error(peer: Peer, head: ResponseHead, wanted: ByteRange) -> PeerUnavailable:
    """Return the error for a peer that answers 416 to the range `wanted`."""
    try:
        size = parse_unsatisfied_range(head.headers.get("content-range", ""))
        part = wanted.within(size)
    except Unsatisfiable as error:
        return OutOfRange(peer, wanted, error.size)
    except ValueError as error:
        return PeerUnavailable(f"peer {peer.id} answered 416: {error}", FailureReason.REFUSED)
    return PeerUnavailable(f"peer {peer.id} answered 416, though it has {part.content_range}", FailureReason.REFUSED)


def _parse_span(head: ResponseHead, length: int, digest: Digest) -> Span:
    """Return the span that the head of a response states. Raises ValueError if it is malformed or cannot be used."""
    headers = head.headers
    if headers.get("docker-content-digest", digest) != digest:
        raise ValueError(f"its digest is {headers['docker-content-digest']}")
    if headers.get("content-encoding", "identity") != "identity":
        raise ValueError(f"it is encoded: {headers['content-encoding']}")
    span = Span.whole(length) if head.status == 200 else parse_content_range(headers.get("content-range", ""))
    if span.length != length:
        raise ValueError(f"{length} bytes came as {span.content_range}")
    return span
