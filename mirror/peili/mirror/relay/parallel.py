"""Parallel requests of this host's runtime for parts of one blob.

containerd fetches a large layer as many open-ended ranges at a time, and closes each response after one part. Two
things limit what that costs a peer:

- A peer serves only so many requests of one host at once. If one of the parallel requests failed, containerd would ask
  no other registry for that part. Therefore the requests to a peer take turns (`ParallelRequests`).
- A peer would go on sending for a while after the response is closed, several MiB with what kernels buffer. Therefore
  an open-ended range is asked for in windows (`open_in_windows`): bounded ranges, one after the other. Windows grow
  with what was read, so that a long response takes few requests.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from peili.mirror.client.client import PeerClient
from peili.mirror.client.connection import Response
from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.limits import KIB, MIB, Limits
from peili.mirror.oci.ranges import ByteRange, Span, parse_content_range
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.peers import Peer
from peili.mirror.support.tasks import Broadcast

T = TypeVar("T")

_BUSY_PAUSE = 0.25
"""Seconds after which a busy holder is asked again, even if no transfer has ended here: the holder may notice later
than this host that a response was closed.
"""
_MAX_TURN_WAIT = 1.0
"""Seconds that a request waits for its turn at a peer, before the time for the peer's response starts."""
_RECENT = 5.0
"""Seconds for which a holder may still be busy with a transfer that has ended here."""
_CLOSED_RESPONSES = 2
"""So many recently closed responses of one blob show that the runtime fetches in parallel. A single one may come from a
runtime that was stopped and resumes.
"""
_MAX_BLOBS = 4096
"""Blobs remembered as recent."""
_FIRST_WINDOW = 128 * KIB
_LARGEST_WINDOW = 4 * MIB
_WINDOW_DIVISOR = 4
"""A window has at most this fraction of what was read before it, so at most this fraction is sent in vain."""
_GATHER_SECONDS = 0.5
"""The longest time that a window is read before its bytes are passed on."""


class ParallelRequests:
    """Counts the transfers of each blob and the requests to each peer. Used on one event loop.

    It knows whether the runtime fetches a blob in parallel, and lets the requests to a peer take turns.

    Args:
        limits: ``parts_per_peer``.
        limited: called with the name of a limit that took effect.
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
            _remember(self._closed, digest, (*closed, asyncio.get_running_loop().time())[-_CLOSED_RESPONSES:])
            raise
        finally:
            self._transfers[digest] -= 1
            self._transfers += Counter()  # drops zeros
            _remember(self._ended, digest, asyncio.get_running_loop().time())
            self._changes.notify()

    def is_shared(self, digest: Digest) -> bool:
        """Return whether a holder may be busy with another transfer of `digest`, which runs or ended a moment ago."""
        ended = self._ended.get(digest)
        return self._transfers[digest] > 1 or (ended is not None and _is_recent(ended))

    def is_parallel(self, digest: Digest) -> bool:
        """Return whether the runtime fetches `digest` in parallel: another transfer runs, or some were closed early."""
        closed = self._closed.get(digest, ())
        return self._transfers[digest] > 1 or (len(closed) == _CLOSED_RESPONSES and _is_recent(closed[0]))

    def should_log(self, digest: Digest) -> bool:
        """Return whether nothing was logged for parts of `digest` in the last seconds. Then it counts as logged."""
        logged = self._logged.get(digest)
        _remember(self._logged, digest, asyncio.get_running_loop().time())
        return logged is None or not _is_recent(logged)

    async def wait_turn(self, peer_id: str) -> Callable[[], None]:
        """Wait until one more request to `peer_id` is allowed.

        Returns:
            What to call, once, when the response is closed.

        Raises:
            PeerUnavailable: with `FailureReason.BUSY`, after a second.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _MAX_TURN_WAIT
        while self._requests[peer_id] >= self._limits.parts_per_peer:
            if loop.time() > deadline:
                self._limited("parts_per_peer")
                raise PeerUnavailable(f"peer {peer_id} has as many requests of this host as it may", FailureReason.BUSY)
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


def _remember(table: dict[Digest, T], digest: Digest, value: T) -> None:
    """Add the newest entry; drop the oldest if there are too many."""
    table.pop(digest, None)
    table[digest] = value
    if len(table) > _MAX_BLOBS:
        del table[next(iter(table))]


class PeerRequest:
    """Asks one peer for one content or for parts of it, which may take turns with other requests.

    Args:
        client: the HTTP client.
        peer: the peer to ask.
        path: the path of the content at the peer.
        timeout: seconds until the head of the response.
        parallel: if given, the request waits for its turn at the peer.
        method: GET or HEAD.
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
    ) -> None:
        self.peer = peer
        self.method = method
        self.parallel = parallel
        self.is_queued = False
        """Whether it waits for its turn, and so not for the peer."""
        self._client = client
        self._path = path
        self._timeout = timeout

    async def open(self, wanted: ByteRange | None) -> Response:
        """Ask for `wanted`, or for the whole. Raises PeerUnavailable."""
        headers: Mapping[str, str] = {"Range": str(wanted)} if wanted else {}
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
    """Ask for the open-ended range `wanted` in windows.

    If the peer does not answer with the first window, its response is returned as it is.

    Raises:
        PeerUnavailable: the peer did not answer.
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
    """The bytes of one span, in windows. It has one owner, who calls `close`.

    A window is read to its end, as far as the caller's buffer takes it, before any of it is passed on. So the peer is
    done with the window however slowly the runtime reads.

    Args:
        request: asks the peer for further windows.
        span: what the windows add up to.
        response: the first window.
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
        self._window_left = response.left

    @property
    def left(self) -> int:
        """Bytes of the span that have not come yet."""
        gathered = self._window_left - self._window.left if self._window is not None else 0
        return self._span.stop - self._offset - gathered

    @property
    def buffered(self) -> int:
        """Bytes of the window that are here already."""
        return self._window.buffered if self._window is not None else 0

    async def begin(self) -> None:
        """Wait until there is a buffered byte. Raises OSError."""
        if self._window is not None:
            await self._window.begin()

    async def readinto(self, buffer: memoryview) -> int:
        """Wait for bytes, and read what has come of this window.

        Returns:
            The number of bytes; 0 at the end.

        Raises:
            OSError: the connection failed.
            PeerUnavailable: the peer refused the next window.
        """
        if self._offset >= self._span.stop:
            return 0
        window = self._window or await self._open_next(len(buffer))
        room, filled, started = buffer[: self._window_left], 0, time.monotonic()
        while filled < len(room) and (not filled or time.monotonic() - started < _GATHER_SECONDS):
            filled += await window.readinto(room[filled:])
        self._window_left -= filled
        self._offset += filled
        if not self._window_left:
            self._window = None
            window.close()
        return filled

    async def splice(self, pipe: int, count: int) -> int:
        """Not available: `can_splice` is false."""
        raise NotImplementedError

    def close(self) -> None:
        """Free the connection. Idempotent."""
        window, self._window = self._window, None
        if window is not None:
            window.close()

    async def _open_next(self, room: int) -> Response:
        """Ask for a window no larger than `room`, so that it is read whole before the runtime gets any of it."""
        read = self._offset - self._span.start
        size = min(max(_FIRST_WINDOW, read // _WINDOW_DIVISOR), _LARGEST_WINDOW, room)
        part = Span(self._offset, min(self._offset + size, self._span.stop), self._span.size)
        self._window = window = await self._request.open(ByteRange(part.start, part.stop - 1))
        self._window_left = part.length
        head, peer = window.head, self._request.peer
        if head.status in {429, 503}:
            raise PeerUnavailable(f"peer {peer.id} is busy", FailureReason.BUSY)
        if (head.status, head.headers.get("content-range"), window.length) != (206, part.content_range, part.length):
            raise PeerUnavailable(f"peer {peer.id} no longer sends {part.content_range}", FailureReason.REFUSED)
        return window
