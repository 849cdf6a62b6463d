"""One holder's response to a request for content: opened in bounded time, and read with deadlines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from peili.mirror.client.client import PeerClient, map_exceptions
from peili.mirror.content.incoming import Tap
from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.limits import KIB, MIB, Limits
from peili.mirror.oci.ranges import ByteRange, Span
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.keys import InFlight
from peili.mirror.peer_api.peers import Peer
from peili.mirror.relay.joined_body import JoinedBody
from peili.mirror.relay.parallel import ParallelRequests, PeerRequest, open_in_windows
from peili.mirror.relay.responses import ResponseBody, check_response, in_flight_headers
from peili.mirror.support.deadlines import Deadline

_GATHER_SIZE = 256 * KIB
"""The bytes that one read of content in flight should get. Each read costs as much as thousands of bytes, because the
bytes are also hashed, and sent to the runtime and to other hosts, each time.
"""
_GATHER_MIN, _GATHER_MAX = 0.005, 0.04
"""The least and the most seconds for which bytes gather if a read got fewer. On average, each hop adds half of that
time to the delay of the bytes.
"""
_GATHER_SHARE = 1 / 128
"""Between the least and the most, the time is this share of what the whole transfer takes."""
_TAPPED_READ = MIB
"""The most bytes of one read if other hosts read, too: a part of the ring, so that they keep up."""


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
        in_flight: Given if the peer still receives the content. It may have nothing to send for long, so `feeder`
            decides how long to wait.
        is_joined: Whether another transfer receives the bytes.

    Attributes:
        in_flight: How the content arrives at the peer; None if the peer has the whole. Replaced from time to time.
        peer: The peer.
        span: The bytes that the peer sends.
        offset: The next byte of the content. All bytes before it were read or spliced.
        started: When the first bytes had arrived, by `time.monotonic`.
        tap: Gets the bytes that are read, for other hosts.
        is_joined: Whether another transfer receives the bytes; see `joining`.
    """

    def __init__(
        self,
        request: PeerRequest,
        span: Span,
        body: ResponseBody | JoinedBody,
        limits: Limits,
        *,
        in_flight: InFlight | None = None,
        is_joined: bool = False,
    ) -> None:
        self.is_joined = is_joined
        self.in_flight = in_flight
        self.peer = request.peer
        self.span = span
        self.offset = span.start
        self.started = time.monotonic()
        self.tap: Tap | None = None
        self._request = request
        self._body = body
        self._waited = 0.0
        self._read_at = self.started  # when the last read has ended
        self._gather_until = 0.0
        self._current_read: tuple[float, Deadline] | None = None  # when it started, and its deadline
        self._replaced: PeerUnavailable | None = None
        # In flight, `feeder` ends the wait before this, and knows whether the peer is to blame.
        self._stall_timeout = limits.stall_timeout + (0 if in_flight is None else limits.wait_timeout)
        self._max_counted_wait = min(limits.stall_timeout, limits.rate_window / 2)
        self._rate_check = _RateCheck(limits) if in_flight is None else None

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
        identity: str | None = None,
    ) -> Source:
        """Send a request to `peer`, and wait until the first bytes of the body have arrived.

        Args:
            client: The HTTP client.
            peer: The peer to ask.
            path: The path of the content at the peer.
            digest: The content.
            wanted: The range to request; None for the whole content.
            limits: ``first_byte_timeout`` bounds this call, or ``wait_timeout`` if `identity` is given.
            check_span: Called with the span that the peer states, before the body is read. It may raise
                PeerUnavailable, for example because the size is wrong.
            parallel: If given, `wanted` is requested in windows, each of which waits for its turn.
            method: GET, or HEAD for a source that only states its span and cannot be read.
            identity: The id of this host, if it accepts content that is still arriving at the peer.

        Raises:
            PeerUnavailable: The peer does not send the requested bytes.
        """
        head_timeout = limits.stall_timeout if identity is None else limits.wait_timeout
        headers = in_flight_headers(identity) if identity is not None else {}
        with ExitStack() as stack:
            try:
                async with Deadline(limits.first_byte_timeout if identity is None else limits.wait_timeout):
                    request = PeerRequest(client, peer, path, head_timeout, parallel, method=method, headers=headers)
                    body = await _send(request, wanted)
                    stack.callback(body.close)
                    span, in_flight = check_response(request, body, digest, wanted, identity)
                    check_span(peer, span)
                    with map_exceptions(peer):
                        await body.begin()
            except TimeoutError as error:
                raise PeerUnavailable(f"peer {peer.id}: no first byte in time", FailureReason.SILENT) from error
            stack.pop_all()
            if method != "GET":
                body.close()  # there is no body, so the connection can be used again
            return cls(request, span, body, limits, in_flight=in_flight)

    @property
    def media_type(self) -> str | None:
        """The media type that the peer claims."""
        return self._body.head.header("content-type")

    @property
    def path(self) -> tuple[str, ...]:
        """The ids of the peer, of the host that it reads from, and so on, as far as the peer says them."""
        return (self.in_flight.path if self.in_flight is not None else ()) or (self.peer.id,)

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
        if self.tap is not None and self.tap.is_wanted:
            buffer = buffer[:_TAPPED_READ]
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
                        await self._gather()
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
        if self._rate_check is not None and self._rate_check.is_slow(count, min(waited, self._max_counted_wait)):
            raise PeerUnavailable(f"peer {self.peer.id} sends too slowly", FailureReason.SLOW)
        self.offset += count
        self._plan_gathering(count)
        return count

    def _plan_gathering(self, count: int) -> None:
        """Note when the next read should begin: when enough bytes have arrived, if they go on to come at this rate."""
        now = time.monotonic()
        seconds, self._read_at = now - self._read_at, now
        self._gather_until = 0.0
        if 0 < count < _GATHER_SIZE:
            most = max(_GATHER_MIN, min(_GATHER_MAX, _GATHER_SHARE * seconds * self.span.length / count))
            wanted = min(_GATHER_SIZE, self.remaining)  # the last bytes do not wait for more
            self._gather_until = now + min(most, seconds * wanted / count)

    async def _gather(self) -> None:
        """Let a feeder's bytes gather if few arrived at the last read."""
        if self.in_flight is not None and (pause := self._gather_until - time.monotonic()) > 0:
            await asyncio.sleep(pause)


async def _send(request: PeerRequest, wanted: ByteRange | None) -> ResponseBody:
    """Send `request`, in windows if it waits for turns. Raises PeerUnavailable."""
    is_whole = request.parallel is None or wanted is None
    return await (request.open(wanted) if is_whole or wanted is None else open_in_windows(request, wanted))
