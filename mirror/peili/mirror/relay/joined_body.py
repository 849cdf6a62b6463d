"""What one transfer reads from the memory of another one, instead of from a peer."""

from __future__ import annotations

from peili.mirror.client.connection import ResponseHead
from peili.mirror.content.incoming import Incoming, Tap
from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.oci.ranges import Span
from peili.mirror.support.deadlines import Deadline

PATIENCE = 1.0
"""Seconds without a byte after which a transfer no longer shares what another one receives."""


class NotJoined(PeerUnavailable):
    """The other transfer has no bytes now. Its peer did nothing wrong."""


class JoinedBody:
    """The bytes of `span` of what another transfer receives. Its one owner calls `close`.

    Args:
        incoming: What the other transfer receives.
        tap: The tap of the transfer that reads.
        span: The bytes to read.

    Attributes:
        head: Stands for the head of a response.
        length: The length of the span in bytes.
        can_splice: False.
        buffered: 0.
    """

    def __init__(self, incoming: Incoming, tap: Tap, span: Span) -> None:
        self.head = ResponseHead(200, {}, keep_alive=True)
        self.length: int | None = span.length
        self.can_splice = False
        self.buffered = 0
        self._incoming = incoming
        self._tap = tap
        self._span = span
        self._offset = span.start
        self._generation = incoming.generation
        tap.is_joined = True

    @property
    def remaining(self) -> int:
        """The number of bytes of the span that were not read yet."""
        return self._span.stop - self._offset

    async def begin(self) -> None:
        """Wait until there is a byte. Raises NotJoined."""
        await self._next(memoryview(bytearray(1)))

    async def readinto(self, buffer: memoryview) -> int:
        """Wait for bytes, and read them.

        Returns:
            The number of bytes; 0 at the end.

        Raises:
            NotJoined: The other transfer has ended, has no byte for `PATIENCE` seconds, or had wrong bytes; or this one
                is too slow for it.
        """
        count = await self._next(buffer[: self.remaining]) if self.remaining else 0
        self._offset += count
        return count

    async def splice(self, pipe: int, count: int) -> int:
        """Raise NotImplementedError: `can_splice` is false."""
        raise NotImplementedError

    def close(self) -> None:
        """Note that this transfer reads from a peer itself, or ends. Idempotent."""
        self._tap.is_joined = False

    async def _next(self, buffer: memoryview) -> int:
        try:
            async with Deadline(PATIENCE):
                while True:
                    changed = self._incoming.changes.next_change
                    if count := self._copy(buffer):
                        return count
                    await changed.wait()
        except TimeoutError as error:
            raise _not_joined("has no byte") from error

    def _copy(self, buffer: memoryview) -> int:
        incoming = self._incoming
        if incoming.generation != self._generation:
            raise _not_joined("had wrong bytes")
        if not incoming.may_share(self._tap):
            raise _not_joined("is for those who have shown their rights")
        count = 0 if incoming.ring is None else incoming.ring.readinto(self._offset, buffer)
        if count is None:
            raise _not_joined("is ahead")
        if not count and not incoming.has_other_source(self._tap):
            raise _not_joined("has ended")
        return count


def _not_joined(problem: str) -> NotJoined:
    return NotJoined(f"the other transfer of this content {problem}", FailureReason.WAITING)
