"""What this host receives now: the content that the relay passes to the runtime, or that the runtime fetches itself.

The relay has a `Tap` for each transfer. Other hosts read through `IncomingContent` (incoming_content.py). A host that
reads slowly falls back to the runtime's file: nobody waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from peili.mirror.content.received import ReceivedRecords
from peili.mirror.content.ring import ContentRing, RingMemory
from peili.mirror.limits import Limits
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.keys import MAX_PATH, InFlight
from peili.mirror.support.tasks import Broadcast

_RETURN_TIMEOUT = 0.5
"""Seconds in which a runtime that disconnected continues. If it was killed, other hosts need another feeder soon."""
_MAX_EXPECTED = 1024
"""How many digests without a transfer are remembered. They are forgotten after ``limits.claim_timeout`` in any case."""


class Incoming:
    """Content of one digest that arrives here. Used on one event loop.

    Its bytes are not verified. What the store shows of the content is not in it.

    Args:
        digest: The digest.
        identity: This host's id.
        memory: Lends the ring.

    Attributes:
        digest: The digest.
        size: The size of the whole content in bytes, as a peer states it; None while nobody has.
        ring: The last bytes; None if nobody needs them, or if there is no memory for them.
        readable: How many bytes from the start the store has shown. A reader updates it.
        received: The end of the bytes that have arrived, whether they are in the ring or not.
        generation: Counts how often the bytes were found to be wrong. Bytes of different generations do not belong
            together.
        has_ended: Whether nobody expects more bytes, as far as this host's relay knows.
        is_abandoned: Whether the runtime disconnected before it had all bytes.
        changes: Notified of each change.
    """

    def __init__(self, digest: Digest, identity: str, memory: RingMemory) -> None:
        self.digest = digest
        self.size: int | None = None
        self.ring: ContentRing | None = None
        self.readable = 0
        self.received = 0
        self.generation = 0
        self.has_ended = False
        self.is_abandoned = False
        self.changes = Broadcast()
        self._identity = identity
        self._memory = memory
        self._taps: dict[Tap, bool] = {}  # in the order of their start, with whether each needs the ring
        self._readers = 0
        self._source: tuple[Tap, Callable[[], tuple[str, ...]]] | None = None
        self._writer: Tap | None = None
        self._is_checked = False  # whether the ring has bytes that were sent to somebody with rights

    @property
    def is_relayed(self) -> bool:
        """Whether the relay has a transfer of the content."""
        return bool(self._taps)

    @property
    def is_from_upstream(self) -> bool:
        """Whether a runtime still fetches the content at the end of its way. Otherwise, a peer there has all of it."""
        return self._source is None or any(self._taps.values())

    @property
    def needs_ring(self) -> bool:
        """Whether bytes that arrive are put into the ring."""
        return self._readers > 0 or any(self._taps.values())

    def is_continuous(self, offset: int) -> bool:
        """Return whether all bytes from `offset` to the end of the ring can be read, in the ring or in the store."""
        ring = self.ring
        return ring is not None and ring.start <= max(offset, self.readable)

    def state(self) -> InFlight:
        """Return how the content arrives here, without what the store shows."""
        path = (self._identity, *(self._source[1]() if self._source is not None else ()))
        available = self.readable
        if self.ring is not None and self.is_continuous(0):
            available = max(available, self.ring.stop)
        return InFlight(available, self.size, path[:MAX_PATH], path[1] if len(path) > 1 else None)

    def has_missed(self, offset: int) -> bool:
        """Return whether the byte at `offset` has arrived, and is not in the ring."""
        is_in_ring = self.ring is not None and self.ring.start <= offset < self.ring.stop
        return offset < self.received and not is_in_ring

    def may_share(self, tap: Tap) -> bool:
        """Return whether the transfer of `tap` may have what the others receive.

        A peer sends some content only to those whose rights were checked. What it sent to them is for nobody else.
        """
        return tap.is_checked or not (self._is_checked or any(each.is_checked for each in self._taps))

    def has_other_source(self, tap: Tap) -> bool:
        """Return whether another transfer reads from a peer, or asks for one, and that of `tap` may share it."""
        return self.may_share(tap) and any(not each.is_joined for each in self._taps if each is not tap)

    def add_reader(self) -> None:
        """Count one more reader. Each calls `remove_reader` in the end."""
        self._readers += 1

    def remove_reader(self) -> None:
        """Count one reader less."""
        self._readers -= 1
        self._free_if_unused()

    def add_tap(self, tap: Tap) -> None:
        """Note a transfer."""
        self._taps[tap] = False

    def remove_tap(self, tap: Tap) -> None:
        """Note the end of a transfer."""
        self.clear_source(tap)
        del self._taps[tap]
        if self._writer is tap:
            self._writer = None
        self.changes.notify()

    def set_source(self, tap: Tap, path: Callable[[], tuple[str, ...]], *, size: int | None, needs_ring: bool) -> None:
        """Note where a transfer reads from; see `Tap.read_from`."""
        self._source = tap, path
        self._taps[tap] = needs_ring
        if size is not None:
            self.size = size
        self.changes.notify()

    def clear_source(self, tap: Tap) -> None:
        """Note that a transfer reads from nobody now."""
        if self._source is not None and self._source[0] is tap:
            self._source = None

    def write(self, tap: Tap, offset: int, data: memoryview) -> None:
        """Put the bytes that a transfer received into the ring; see `Tap.write`."""
        ring = self.ring
        if ring is None or (offset > ring.stop and self._writer in {None, tap}):
            ring = self._replace_ring(offset)
        if ring is None or not offset <= ring.stop < offset + len(data):
            return  # another transfer has written these bytes, or is about to
        self._writer, self._is_checked = tap, self._is_checked or tap.is_checked
        ring.append(data[ring.stop - offset :])
        self.changes.notify()

    def discard_bytes(self) -> None:
        """Forget all bytes, because they were wrong. Readers get `Aborted`."""
        self.generation += 1
        self.readable = self.received = 0
        self._drop_ring()
        self.changes.notify()

    def end(self) -> None:
        """Note that nobody expects more bytes."""
        self.has_ended = True
        self.changes.notify()
        self._free_if_unused()

    def _replace_ring(self, start: int) -> ContentRing | None:
        self._drop_ring()
        self.ring = self._memory.lend(start, self.size)
        return self.ring

    def _drop_ring(self) -> None:
        if self.ring is not None:
            self._memory.take_back(self.ring)
            self.ring = self._writer = None
            self._is_checked = False

    def _free_if_unused(self) -> None:
        if self.has_ended and not self._readers:
            self._drop_ring()


class Tap:
    """What one transfer tells about the bytes that it receives. Its one owner calls `close`.

    Args:
        incoming: The content.
        on_close: Called with whether more bytes are expected.
        is_checked: Whether the transfer is for somebody whose rights were checked.

    Attributes:
        incoming: The content.
        is_checked: See above.
        is_joined: Whether the transfer reads what another one receives. It sets this.
    """

    def __init__(self, incoming: Incoming, on_close: Callable[[bool], None], *, is_checked: bool = False) -> None:
        self.incoming = incoming
        self.is_checked = is_checked
        self.is_joined = False
        self._on_close = on_close
        self._is_closed = False
        incoming.add_tap(self)

    @property
    def is_wanted(self) -> bool:
        """Whether `write` does something now. If not, the bytes need not pass through this process."""
        return self.incoming.needs_ring

    def read_from(self, path: Callable[[], tuple[str, ...]], *, size: int | None = None, needs_ring: bool) -> None:
        """Note where the transfer reads from, or tries to.

        Args:
            path: Returns the ids from the peer that it reads from to the host that fetches from upstream.
            size: The size of the whole content in bytes, if the peer has stated it.
            needs_ring: Whether the bytes are put into the ring even if no host reads them yet.
        """
        self.incoming.set_source(self, path, size=size, needs_ring=needs_ring)

    def stop_reading(self) -> None:
        """Note that the transfer no longer reads from, or asks, the peer of `read_from`."""
        self.incoming.clear_source(self)

    def write(self, offset: int, data: memoryview) -> None:
        """Note that `data` has arrived: the bytes from `offset` on. They are copied if somebody may need them."""
        self.skip(offset + len(data))
        if self.incoming.needs_ring:
            self.incoming.write(self, offset, data)

    def skip(self, stop: int) -> None:
        """Note that the bytes before `stop` have arrived, which this process may not have seen."""
        self.incoming.received = max(self.incoming.received, stop)

    def discard_bytes(self) -> None:
        """Note that the bytes so far were wrong. Readers get `Aborted`."""
        self.incoming.discard_bytes()

    def close(self, *, is_abandoned: bool, is_expected: bool) -> None:
        """End the transfer. Idempotent.

        Args:
            is_abandoned: Whether the runtime disconnected before it had all bytes.
            is_expected: Whether the content, or the rest of it, is expected in the store soon.
        """
        if not self._is_closed:
            self._is_closed = True
            self.incoming.is_abandoned = is_abandoned
            self.incoming.remove_tap(self)
            self._on_close(is_expected)


class IncomingTable:
    """All content that this host receives. Used on one event loop.

    After the last transfer of a digest, more bytes are expected for ``limits.claim_timeout`` seconds: the runtime may
    continue, fetch the rest from upstream, or commit what it has. By then, the store shows them. If the runtime has
    disconnected, the time is shorter.

    Args:
        identity: This host's id.
        limits: See above; and ``ring_memory`` and ``ring_size``.
        limited: Called with the name of a limit that took effect.

    Attributes:
        received: What this host received lately, for a comparison with other hosts.
    """

    def __init__(self, identity: str, limits: Limits, limited: Callable[[str], None]) -> None:
        self.received = ReceivedRecords()
        self._identity = identity
        self._limits = limits
        self._memory = RingMemory(limits, limited)
        self._incoming: dict[Digest, Incoming] = {}
        self._expected: dict[Digest, asyncio.TimerHandle] = {}

    def get(self, digest: Digest) -> Incoming | None:
        """Return the content of `digest`, if it arrives here or is expected."""
        return self._incoming.get(digest)

    def state(self, digest: Digest) -> InFlight | None:
        """Return how the content of `digest` arrives, without what the store shows; None if nobody expects it."""
        incoming = self._incoming.get(digest)
        return None if incoming is None else incoming.state()

    def open_tap(self, digest: Digest, *, is_checked: bool = False) -> Tap:
        """Note the start of a transfer of `digest`. The caller closes the tap at its end.

        Args:
            digest: The digest.
            is_checked: Whether it is for somebody whose rights were checked. Peers may send it for that reason.
        """
        incoming = self._incoming.get(digest)
        if incoming is None:
            incoming = self._incoming[digest] = Incoming(digest, self._identity, self._memory)
        if (timer := self._expected.pop(digest, None)) is not None:
            timer.cancel()
        incoming.is_abandoned = False
        return Tap(incoming, partial(self._end_transfer, incoming), is_checked=is_checked)

    def clear(self) -> None:
        """Expect nothing any more. Transfers that still run keep their content."""
        for digest in list(self._expected):
            self._forget(digest)

    def _end_transfer(self, incoming: Incoming, is_expected: bool) -> None:
        if incoming.is_relayed:
            return
        if not is_expected:
            self._forget(incoming.digest)
            return
        while len(self._expected) >= _MAX_EXPECTED:
            self._forget(next(iter(self._expected)))
        timeout = self._limits.claim_timeout
        if incoming.is_abandoned:
            timeout = min(timeout, _RETURN_TIMEOUT)
        loop = asyncio.get_running_loop()
        self._expected[incoming.digest] = loop.call_later(timeout, self._forget, incoming.digest)

    def _forget(self, digest: Digest) -> None:
        if (timer := self._expected.pop(digest, None)) is not None:
            timer.cancel()
        self._incoming.pop(digest).end()
