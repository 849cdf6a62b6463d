"""What one transfer receives: moves bytes from holders through a pipeline, and knows who sent them.

Other hosts read these bytes while they arrive (content/incoming.py). If they are wrong, hosts compare what each of them
received (tracing.py).
"""

from __future__ import annotations

from peili.mirror.content.incoming import Tap
from peili.mirror.errors import Aborted, FailureReason, NotFound, PeerUnavailable
from peili.mirror.oci.ranges import Span
from peili.mirror.peer_api.received import ReceivedBytes
from peili.mirror.plugins.calls import shows_in_flight
from peili.mirror.relay.blame import IN_FLIGHT
from peili.mirror.relay.feeder import Superseded
from peili.mirror.relay.holders import Holders
from peili.mirror.relay.pipeline import Pipeline
from peili.mirror.relay.senders import Senders
from peili.mirror.relay.source import Source
from peili.mirror.relay.state import RelayState, TransferRequest
from peili.mirror.relay.tracing import trace_wrong_byte, was_found_wrong
from peili.mirror.relay.verify import FoundWrong, Unverified, Verifier


class Reception:
    """The bytes that one transfer receives. Its one owner calls `close`.

    Args:
        request: What is transferred.
        state: The state that all transfers share.
        holders: Opens the sources.

    Attributes:
        senders: The bytes that each peer sent so far, by its id, wrong ones included. The last peer sends now.
        unverified: The peers that sent bytes which are not verified yet.
    """

    def __init__(self, request: TransferRequest, state: RelayState, holders: Holders) -> None:
        self.senders: dict[str, int] = {}
        self.unverified = Senders(request.digest, state, holders.rejections)
        self._request = request
        self._state = state
        self._holders = holders
        self._tap: Tap | None = None  # only if the runtime wants the bytes
        self._received = ReceivedBytes()
        self._is_recorded = False

    def share(self) -> None:
        """Let other hosts read what arrives from now on."""
        self._tap = self._holders.tap = self._state.incoming.open_tap(
            self._request.digest, is_checked=self._request.is_checked
        )

    def record(self, verifier: Verifier, start: int) -> None:
        """Record what `verifier` sees from byte `start` on, which other hosts may ask for. Not if it checks nothing."""
        self._is_recorded = not isinstance(verifier, Unverified)
        if not self._is_recorded:
            return
        earlier = self._state.incoming.received.get(self._request.digest)
        sources = [each for each in earlier[-1].sources if each[0] < start] if earlier else []
        if start > 0 and not sources:
            sources.append((0, None))  # the runtime has the beginning, and not through the relay
        self._received = ReceivedBytes(verifier.prefixes, sources)
        self._state.incoming.received.add(self._request.digest, self._received)

    async def run(self, pipeline: Pipeline, source: Source, span: Span) -> None:
        """Move the whole of `span` through `pipeline`, from `source` and the holders that continue after it.

        Raises:
            DigestMismatch: The bytes are wrong. `FoundWrong` if that was found out before the end.
            Aborted: No holder remains.
        """
        while True:
            may_tell = False
            before, start = self.senders.pop(source.peer.id, 0), source.offset
            self.senders[source.peer.id] = before  # at the end: it sends now
            self._received.sources.append((source.offset, source.peer.id))
            self._tap_source(source)
            try:
                await pipeline.consume(source)
                break
            except PeerUnavailable as error:
                reason = (await self._holders.fail(source, error)).reason
                if reason == FailureReason.BROKEN:
                    await self._check_feeder(source)
                may_tell = isinstance(error, Superseded) or reason == FailureReason.STARVING
            finally:
                self.senders[source.peer.id] += source.offset - start
                self.unverified.add(source)
            try:
                source = await self._holders.resume(source.offset, span)
            except NotFound as error:
                if may_tell:
                    await self._check_feeder(source)
                # The withheld bytes are not the end of the content. With them, the runtime continues at a later byte.
                await pipeline.release()
                raise Aborted(f"no holder remains at byte {source.offset}") from error
        await pipeline.finish()

    def discard(self) -> None:
        """Let other hosts discard what they have read: it was wrong."""
        if self._tap is not None:
            self._tap.discard_bytes()

    def trace_wrong_byte(self) -> None:
        """If a wrong byte may have come from a host in flight, find out in the background where it entered.

        Until then, the content is read from whole holders only.
        """
        state, digest, feeders = self._state, self._request.digest, tuple(self.unverified.feeders)
        if not feeders and IN_FLIGHT not in state.blame.suspects(digest):
            return
        self._holders.rejections.bar_in_flight()
        prefixes, sources = tuple(self._received.prefixes), list(self._received.sources)
        received = ReceivedBytes(prefixes, sources, is_wrong=True)  # it does not change
        state.incoming.received.add(digest, received)
        state.start_trace(digest, trace_wrong_byte(digest, received, feeders, state))

    def close(self, *, is_abandoned: bool, is_complete: bool) -> None:
        """End what other hosts read. Idempotent.

        Args:
            is_abandoned: Whether the runtime disconnected before it had all bytes.
            is_complete: Whether the runtime has all that it wanted.
        """
        if self._tap is not None:
            is_expected = is_complete or shows_in_flight(self._state.context)
            self._tap.close(is_abandoned=is_abandoned, is_expected=is_expected)

    def _tap_source(self, source: Source) -> None:
        """Let other hosts read what `source` sends."""
        if self._tap is not None and not source.is_joined:
            # Without a ring, another host could get content that is collected only when it was verified and written.
            is_collected = source.span.size <= self._request.collect_limit
            needs_ring = is_collected or source.in_flight is not None
            self._tap.read_from(lambda: source.path, size=source.span.size, needs_ring=needs_ring)
            source.tap = self._tap

    async def _check_feeder(self, source: Source) -> None:
        """Check whether a feeder has found out meanwhile that its bytes are wrong.

        Called if its response broke off, and before the runtime is sent upstream for the rest. The runtime would
        otherwise continue after wrong bytes, and notice it only in the end.

        Raises:
            FoundWrong: It has.
        """
        if source.in_flight is None or not self._is_recorded:
            return
        if await was_found_wrong(self._request.digest, self._received, source.peer, self._state.context):
            raise FoundWrong(f"peer {source.peer.id} found out that the bytes which it passed on are wrong")
