"""What one transfer received, so that hosts can compare it if the bytes are wrong."""

from __future__ import annotations

from collections.abc import Sequence

from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.peers import Peer
from peili.mirror.peer_api.received import ReceivedBytes
from peili.mirror.relay.relay import RelayState
from peili.mirror.relay.source import Source
from peili.mirror.relay.tracing import trace_wrong_byte, was_found_wrong
from peili.mirror.relay.verify import FoundWrong, Unverified, Verifier


class Evidence:
    """Records which bytes a transfer received from whom. Bytes that are not verified are not recorded.

    Args:
        digest: The content.
        state: The state that all transfers share.
    """

    def __init__(self, digest: Digest, state: RelayState) -> None:
        self._digest = digest
        self._state = state
        self._received = ReceivedBytes()
        self._is_recorded = False

    def begin(self, verifier: Verifier, start: int) -> None:
        """Record what `verifier` sees from byte `start` on. Other hosts may ask for it from now on."""
        self._is_recorded = not isinstance(verifier, Unverified)
        if not self._is_recorded:
            return
        earlier = self._state.incoming.received.get(self._digest)
        sources = [each for each in earlier[-1].sources if each[0] < start] if earlier else []
        if start > 0 and not sources:
            sources.append((0, None))  # the runtime has the beginning, and not through the relay
        self._received = ReceivedBytes(verifier.prefixes, sources)
        self._state.incoming.received.add(self._digest, self._received)

    def add(self, source: Source) -> None:
        """Note that the next bytes come from `source`."""
        self._received.sources.append((source.offset, source.peer.id))

    async def check_cut(self, source: Source, error: PeerUnavailable) -> None:
        """Check why the response of a feeder broke off.

        Args:
            source: What was read.
            error: Why reading failed.

        Raises:
            FoundWrong: The feeder found out that its bytes are wrong. The runtime would otherwise continue after wrong
                bytes, and notice it only in the end.
        """
        if source.in_flight is None or error.reason != FailureReason.BROKEN or not self._is_recorded:
            return
        if await was_found_wrong(self._digest, self._received, source.peer, self._state.context):
            raise FoundWrong(f"peer {source.peer.id} found out that the bytes which it passed on are wrong")

    def trace(self, feeders: Sequence[Peer]) -> None:
        """Find out in the background where a wrong byte entered. `feeders` are the peers that were read from."""
        state, sources = self._state, list(self._received.sources)
        received = ReceivedBytes(tuple(self._received.prefixes), sources, is_wrong=True)  # it does not change
        state.incoming.received.add(self._digest, received)
        state.tracing.start(trace_wrong_byte(self._digest, received, feeders, state))
