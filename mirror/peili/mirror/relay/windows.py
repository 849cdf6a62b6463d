"""An open-ended range, asked of a peer in windows: bounded ranges one after the other, on a kept connection.

A runtime that fetches in parallel closes such an answer when it has read one buffer of it. The peer would go on sending
for a while, several MiB with what kernels buffer. With windows it never sends beyond the one that was asked for last.
Windows grow with what was read, so that a long answer takes few requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from peili.mirror.client.client import PeerClient
from peili.mirror.client.connection import Response, ResponseHead
from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.limits import KIB, MIB
from peili.mirror.oci.ranges import ByteRange, Span, parse_content_range
from peili.mirror.peer_api.peers import Peer
from peili.mirror.relay.parallel import Turns

_FIRST = 128 * KIB
"""Bytes of the first window."""
_LARGEST = 4 * MIB
_SHARE = 4
"""A window has at most this part of what was read before it; so that part at most is sent in vain."""
_GATHER = 0.5
"""Seconds for which a window is read before what has come is given out."""
_BUSY = frozenset({429, 503})


class Body(Protocol):
    """What a source reads: a peer's `Response`, or one put together from windows. As `Response` describes it."""

    @property
    def head(self) -> ResponseHead:
        """Status and headers."""
        ...

    @property
    def length(self) -> int | None:
        """Bytes of the body; None: not known ahead."""
        ...

    @property
    def left(self) -> int:
        """Bytes of it that have not been read."""
        ...

    @property
    def buffered(self) -> int:
        """Bytes that are here already."""
        ...

    @property
    def can_splice(self) -> bool:
        """Whether `splice` works."""
        ...

    async def begin(self) -> None:
        """Wait until there is an early byte."""
        ...

    async def readinto(self, buffer: memoryview) -> int:
        """Wait for bytes, and read what has come."""
        ...

    async def splice(self, pipe: int, count: int) -> int:
        """As `readinto`, into a pipe."""
        ...

    def close(self) -> None:
        """Free the connection. Idempotent."""
        ...


class Asking:
    """Asks one peer by `method` for one content or parts of it; each in its turn, where there are `turns`."""

    def __init__(
        self, client: PeerClient, peer: Peer, path: str, timeout: float, turns: Turns | None, *, method: str = "GET"
    ) -> None:
        self.peer = peer
        self.method = method
        self._client = client
        self._path = path
        self._timeout = timeout
        self.turns = turns
        self.queues = False  # it waits for its turn, and so not for the peer

    async def open(self, wanted: ByteRange | None) -> tuple[Response, Callable[[], None]]:
        """The answer, and what to call when it is closed. Raises PeerUnavailable."""
        headers: Mapping[str, str] = {"Range": str(wanted)} if wanted else {}
        done = await self._turn()
        try:
            answer = await self._client.open(self.method, self.peer, self._path, timeout=self._timeout, headers=headers)
        except BaseException:
            done()
            raise
        return answer, done

    async def _turn(self) -> Callable[[], None]:
        if self.turns is None:
            return _nothing
        self.queues = True
        try:
            return await self.turns.ask(self.peer.id)
        finally:
            self.queues = False


async def open_in_windows(asking: Asking, wanted: ByteRange) -> Body:
    """What ``asking.open(wanted)`` gives for an open-ended range, in windows. Raises PeerUnavailable.

    Where the peer does not answer with the window, its answer is given as it is.
    """
    first = wanted.first or 0
    answer, done = await asking.open(ByteRange(first, _last(wanted, first + _FIRST)))
    try:
        span = parse_content_range(answer.head.headers.get("content-range", ""))
        stop = span.size if wanted.last is None else min(wanted.last + 1, span.size)
    except ValueError:
        return Held(answer, done)
    if answer.head.status != 206 or span.start != first or span.stop >= stop or answer.length != span.length:
        return Held(answer, done)
    return Windowed(asking, Span(first, stop, span.size), answer, done)


def _nothing() -> None:
    return


def _last(wanted: ByteRange, stop: int) -> int:
    return stop - 1 if wanted.last is None else min(stop - 1, wanted.last)


class Held:
    """An answer as it came, whose end somebody waits for."""

    def __init__(self, answer: Response, done: Callable[[], None]) -> None:
        self._answer = answer
        self._done: Callable[[], None] | None = done

    @property
    def head(self) -> ResponseHead:
        """See `Body`, as for all that follows."""
        return self._answer.head

    @property
    def length(self) -> int | None:
        return self._answer.length

    @property
    def left(self) -> int:
        return self._answer.left

    @property
    def buffered(self) -> int:
        return self._answer.buffered

    @property
    def can_splice(self) -> bool:
        return self._answer.can_splice

    async def begin(self) -> None:
        await self._answer.begin()

    async def readinto(self, buffer: memoryview) -> int:
        return await self._answer.readinto(buffer)

    async def splice(self, pipe: int, count: int) -> int:
        return await self._answer.splice(pipe, count)

    def close(self) -> None:
        done, self._done = self._done, None
        self._answer.close()
        if done is not None:
            done()


class Windowed:
    """The bytes of `span`, of which `answer` brings the first. One owner, who calls `close`.

    A window is read to its end, as far as the caller's buffer takes it, before anything of it is given out: the peer is
    done with it then, however slowly the runtime reads.
    """

    def __init__(self, asking: Asking, span: Span, answer: Response, done: Callable[[], None]) -> None:
        headers = {**answer.head.headers, "content-range": span.content_range, "content-length": str(span.length)}
        self.head = replace(answer.head, headers=headers)
        self.length: int | None = span.length
        self.can_splice = False
        self._asking = asking
        self._span = span
        self._offset = span.start
        self._window: Held | None = Held(answer, done)
        self._left = answer.left

    @property
    def left(self) -> int:
        """Bytes that have not come, or not been read by the peer's connection."""
        gathered = self._left - self._window.left if self._window is not None else 0
        return self._span.stop - self._offset - gathered

    @property
    def buffered(self) -> int:
        """Bytes of the window that are here already."""
        return self._window.buffered if self._window is not None else 0

    async def begin(self) -> None:
        """Wait until there is an early byte. Raises OSError."""
        if self._window is not None:
            await self._window.begin()

    async def readinto(self, buffer: memoryview) -> int:
        """Wait for bytes, and read what has come of this window; 0 at the end. Raises OSError, PeerUnavailable."""
        if self._offset >= self._span.stop:
            return 0
        window = self._window or await self._next(len(buffer))
        room, filled, began = buffer[: self._left], 0, time.monotonic()
        while filled < len(room) and (not filled or time.monotonic() - began < _GATHER):
            filled += await window.readinto(room[filled:])
        self._left -= filled
        self._offset += filled
        if not self._left:
            self._window = None
            window.close()
        return filled

    async def splice(self, pipe: int, count: int) -> int:
        """Not to be used: `can_splice` is false."""
        raise NotImplementedError

    def close(self) -> None:
        """Free the connection. Idempotent."""
        window, self._window = self._window, None
        if window is not None:
            window.close()

    async def _next(self, room: int) -> Held:
        """Ask for the next window, no larger than `room`: it is read whole then before the runtime is waited for."""
        read = self._offset - self._span.start
        size = min(max(_FIRST, read // _SHARE), _LARGEST, room)
        part = Span(self._offset, min(self._offset + size, self._span.stop), self._span.size)
        answer, done = await self._asking.open(ByteRange(part.start, part.stop - 1))
        self._window = window = Held(answer, done)
        self._left = part.length
        head, peer = answer.head, self._asking.peer
        if head.status in _BUSY:
            raise PeerUnavailable(f"peer {peer.id} is busy", FailureReason.BUSY)
        if (head.status, head.headers.get("content-range"), answer.length) != (206, part.content_range, part.length):
            raise PeerUnavailable(f"peer {peer.id} no longer sends {part.content_range}", FailureReason.REFUSED)
        return window
