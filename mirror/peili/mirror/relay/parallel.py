"""Parallel requests of this host's runtime for parts of one blob.

containerd fetches a large layer with several open-ended ranges at the same time, and closes each response after one
part. This module limits what that costs a peer:

- A peer serves only a limited number of requests of one host at the same time. If one of the parallel requests failed,
  containerd would not fetch that part from another registry. Therefore the requests to a peer take turns
  (`ParallelRequests`).
- A peer continues to send for a while after a response is closed: several MiB, with the buffers of the kernels.
  Therefore an open-ended range is requested in windows (`open_in_windows`): bounded ranges, one after the other.
  Windows grow with the bytes that were read, so that a long response takes few requests.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

from peili.mirror.client.client import PeerClient
from peili.mirror.client.connection import Response
from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.limits import KIB, MIB, Limits
from peili.mirror.oci.ranges import ByteRange, Span, parse_content_range
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.peers import Peer
from peili.mirror.support.newest import put_newest
from peili.mirror.support.tasks import Broadcast

_BUSY_PAUSE = 0.25
"""Seconds after which a busy holder is asked again, even if no transfer has ended here: the holder may notice later
than this host that a response was closed.
"""
_MAX_TURN_WAIT = 1.0
"""Seconds that a request waits for its turn at a peer, before the time for the peer's response starts."""
_RECENT = 5.0
"""Seconds for which a holder may still be busy with a transfer that has ended here."""
_CLOSED_RESPONSES = 2
"""This number of recently closed responses of one blob shows that the runtime fetches in parallel. After a single one,
the runtime may have been stopped, and resume.
"""
_MAX_BLOBS = 4096
"""Blobs remembered as recent."""
_FIRST_WINDOW = 128 * KIB
_LARGEST_WINDOW = 4 * MIB
_WINDOW_DIVISOR = 4
"""A window has at most a quarter of the bytes that were read before it, so that few bytes are sent but not read."""
_GATHER_SECONDS = 0.5
"""The longest time that a window is read before its bytes are passed on."""


class ParallelRequests:
    """Counts the transfers of each blob and the requests to each peer. Used on one event loop.

    It recognises that the runtime fetches a blob in parallel, and lets the requests to a peer take turns.

    Args:
        limits: ``parts_per_peer``.
        limited: Called with the name of a limit that took effect.
    """

    def __init__(self, limits: Limits, limited: Callable[[str], None]) -> None:
        self._limits = limits
        self._limited = limited
        self._transfers: Counter[Digest] = Counter()
        self._ended: dict[Digest, float] = {}
        self._closed: dict[Digest, tuple[float, ...]] = {}
        self._logged: dict[Digest, float] = {}
        self._requests: Counter[str] = Counter()
        self._changes = Broadcast()

    @contextmanager
    def transfer(self, digest: Digest) -> Generator[None]:
        """Count one transfer of `digest`, or of a part of it, for as long as the context lasts."""
        self._transfers[digest] += 1
        try:
            yield
        except (asyncio.CancelledError, OSError):  # the runtime disconnected
            closed = self._closed.get(digest, ())
            moments = (*closed, asyncio.get_running_loop().time())[-_CLOSED_RESPONSES:]
            put_newest(self._closed, digest, moments, _MAX_BLOBS)
            raise
        finally:
            self._transfers[digest] -= 1
            self._transfers += Counter()  # drops zeros
            put_newest(self._ended, digest, asyncio.get_running_loop().time(), _MAX_BLOBS)
            self._changes.notify()

    def is_shared(self, digest: Digest) -> bool:
        """Return whether a holder may be busy with another transfer of `digest`, which is running or ended recently."""
        ended = self._ended.get(digest)
        return self._transfers[digest] > 1 or (ended is not None and _is_recent(ended))

    def is_parallel(self, digest: Digest) -> bool:
        """Return whether the runtime fetches `digest` in parallel: another transfer runs, or two were closed early."""
        closed = self._closed.get(digest, ())
        return self._transfers[digest] > 1 or (len(closed) == _CLOSED_RESPONSES and _is_recent(closed[0]))

    def should_log(self, digest: Digest) -> bool:
        """Return whether nothing was logged about parts of `digest` in the last seconds. Note that it is logged now."""
        logged = self._logged.get(digest)
        put_newest(self._logged, digest, asyncio.get_running_loop().time(), _MAX_BLOBS)
        return logged is None or not _is_recent(logged)

    async def wait_turn(self, peer_id: str) -> Callable[[], None]:
        """Wait until one more request to `peer_id` is allowed.

        Returns:
            A function that ends the turn. Call it once, when the response is closed.

        Raises:
            PeerUnavailable: It took more than a second. The reason is `FailureReason.BUSY`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _MAX_TURN_WAIT
        while self._requests[peer_id] >= self._limits.parts_per_peer:
            if loop.time() > deadline:
                self._limited("parts_per_peer")
                raise PeerUnavailable(
                    f"peer {peer_id} already has {self._limits.parts_per_peer} requests of this host",
                    FailureReason.BUSY,
                )
            await self.wait_change()
        self._requests[peer_id] += 1
        return partial(self._request_ended, peer_id)

    async def wait_change(self) -> None:
        """Wait until a transfer or a request ends, but no longer than a quarter of a second."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_BUSY_PAUSE):
                await self._changes.next_change.wait()

    def _request_ended(self, peer_id: str) -> None:
        self._requests[peer_id] -= 1
        self._requests += Counter()  # drops zeros
        self._changes.notify()


def _is_recent(moment: float) -> bool:
    return asyncio.get_running_loop().time() - moment < _RECENT


class PeerRequest:
    """Requests content, or parts of it, from one peer. Each request may have to wait for its turn.

    Args:
        client: The HTTP client.
        peer: The peer to ask.
        path: The path of the content at the peer.
        timeout: Seconds until the head of the response.
        parallel: If given, each request waits for its turn at the peer.
        method: GET or HEAD.
        headers: More headers of each request.

    Attributes:
        is_queued: Whether the request waits for its turn, and was not sent to the peer yet.
    """

    def __init__(
        self,
        client: PeerClient,
        peer: Peer,
        path: str,
        timeout: float,
        parallel: ParallelRequests | None,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.peer = peer
        self.method = method
        self.parallel = parallel
        self.is_queued = False
        self._client = client
        self._path = path
        self._timeout = timeout
        self._headers = headers or {}

    async def open(self, wanted: ByteRange | None) -> Response:
        """Send a request for the range `wanted`; None means the whole content. Raises PeerUnavailable."""
        headers = {**self._headers, "Range": str(wanted)} if wanted else self._headers
        if self.parallel is None:
            return await self._client.open(self.method, self.peer, self._path, timeout=self._timeout, headers=headers)
        self.is_queued = True
        try:
            end_turn = await self.parallel.wait_turn(self.peer.id)
        finally:
            self.is_queued = False
        try:
            response = await self._client.open(
                self.method, self.peer, self._path, timeout=self._timeout, headers=headers
            )
        except BaseException:
            end_turn()
            raise
        response.on_close = end_turn
        return response


async def open_in_windows(request: PeerRequest, wanted: ByteRange) -> Response | WindowedBody:
    """Request the open-ended range `wanted` in windows.

    Args:
        request: Sends the requests to the peer.
        wanted: The range, with a first byte.

    Returns:
        The body; or the peer's response as it is, if that is not the first window or already contains everything.

    Raises:
        PeerUnavailable: The peer did not answer.
    """
    first = wanted.first or 0
    stop = first + _FIRST_WINDOW
    response = await request.open(ByteRange(first, (stop if wanted.last is None else min(stop, wanted.last + 1)) - 1))
    try:
        span = parse_content_range(response.head.headers.get("content-range", ""))
        stop = span.size if wanted.last is None else min(wanted.last + 1, span.size)
    except ValueError:
        return response
    if response.head.status != 206 or span.start != first or span.stop >= stop or response.length != span.length:
        return response
    return WindowedBody(request, Span(first, stop, span.size), response)


class WindowedBody:
    """The bytes of one span, which arrive in windows. Its one owner calls `close`.

    A window is read to its end, if the caller's buffer has room for it, before any of it is returned. So the peer can
    finish the window at its own speed, even if the runtime reads slowly.

    Args:
        request: Requests the next windows.
        span: All bytes of the windows together.
        response: The response with the first window.

    Attributes:
        head: The head of the first response, changed so that it describes the whole span.
        length: The length of the span in bytes.
        can_splice: False.
    """

    def __init__(self, request: PeerRequest, span: Span, response: Response) -> None:
        headers = {**response.head.headers, "content-range": span.content_range, "content-length": str(span.length)}
        self.head = replace(response.head, headers=headers)
        self.length: int | None = span.length
        self.can_splice = False
        self._request = request
        self._span = span
        self._offset = span.start
        self._window: Response | None = response
        self._window_remaining = response.remaining

    @property
    def remaining(self) -> int:
        """The number of bytes of the span that have not arrived yet."""
        gathered = self._window_remaining - self._window.remaining if self._window is not None else 0
        return self._span.stop - self._offset - gathered

    @property
    def buffered(self) -> int:
        """The number of bytes of the window that are in memory already."""
        return self._window.buffered if self._window is not None else 0

    async def begin(self) -> None:
        """Wait until there is a buffered byte. Raises OSError."""
        if self._window is not None:
            await self._window.begin()

    async def readinto(self, buffer: memoryview) -> int:
        """Wait for bytes, and read the rest of this window, or as much as arrives within half a second.

        Returns:
            The number of bytes; 0 at the end.

        Raises:
            OSError: The connection failed.
            PeerUnavailable: The peer refused the next window.
        """
        if self._offset >= self._span.stop:
            return 0
        window = self._window or await self._open_next(len(buffer))
        room, filled, started = buffer[: self._window_remaining], 0, time.monotonic()
        while filled < len(room) and (not filled or time.monotonic() - started < _GATHER_SECONDS):
            filled += await window.readinto(room[filled:])
        self._window_remaining -= filled
        self._offset += filled
        if not self._window_remaining:
            self._window = None
            window.close()
        return filled

    async def splice(self, pipe: int, count: int) -> int:
        """Raise NotImplementedError: `can_splice` is false."""
        raise NotImplementedError

    def close(self) -> None:
        """Free the connection. Idempotent."""
        window, self._window = self._window, None
        if window is not None:
            window.close()

    async def _open_next(self, room: int) -> Response:
        """Request a window of at most `room` bytes, so that it is read whole before the runtime receives any of it."""
        read = self._offset - self._span.start
        size = min(max(_FIRST_WINDOW, read // _WINDOW_DIVISOR), _LARGEST_WINDOW, room)
        part = Span(self._offset, min(self._offset + size, self._span.stop), self._span.size)
        self._window = window = await self._request.open(ByteRange(part.start, part.stop - 1))
        self._window_remaining = part.length
        head, peer = window.head, self._request.peer
        if head.status in {429, 503}:
            raise PeerUnavailable(f"peer {peer.id} is busy", FailureReason.BUSY)
        if (head.status, head.headers.get("content-range"), window.length) != (206, part.content_range, part.length):
            raise PeerUnavailable(f"peer {peer.id} no longer sends {part.content_range}", FailureReason.REFUSED)
        return window
