"""Lets requests of this host's runtime for the same content share one transfer.

The second request reads from memory what the first one receives. If the first one has no bytes for a moment, because
its runtime reads slowly or its peer waits, the second one asks for holders itself, and continues at the byte. This
applies to content that is kept in memory anyway: in flight, or collected whole.
"""

from __future__ import annotations

from peili.mirror.content.incoming import Incoming, Tap
from peili.mirror.oci.ranges import ByteRange, Span
from peili.mirror.peer_api.peers import Peer
from peili.mirror.relay.joined_body import PATIENCE, JoinedBody, NotJoined
from peili.mirror.relay.parallel import PeerRequest
from peili.mirror.relay.source import Source
from peili.mirror.relay.state import RelayState, TransferRequest
from peili.mirror.support.deadlines import Deadline


async def open_joined(
    state: RelayState, request: TransferRequest, tap: Tap, wanted: ByteRange | None, *, whole_if_small: bool
) -> Source | None:
    """Open a source for what another transfer receives. It waits up to `PATIENCE` seconds for the first byte.

    Args:
        state: The relay's state.
        request: What the transfer fetches.
        tap: The tap of the transfer.
        wanted: The range to read; None for the whole content.
        whole_if_small: Whether content that is collected is read whole, whatever the range is.

    Returns:
        The source, whose peer is that of the other transfer. None if there is no other one that has the bytes.
    """
    incoming = tap.incoming
    if not incoming.has_other_source(tap) or not await _has_begun(incoming, tap):
        return None
    size, ring = incoming.size, incoming.ring
    if size is None or ring is None or (wanted is not None and not wanted.is_within(size)):
        return None
    is_whole = wanted is None or (whole_if_small and size <= request.collect_limit)
    span = Span.whole(size) if is_whole or wanted is None else wanted.within(size)
    if not ring.start <= span.start <= ring.stop:
        return None
    arrival = incoming.state()
    body = JoinedBody(incoming, tap, span)
    try:
        await body.begin()
    except NotJoined:
        body.close()
        return None
    peer = Peer(arrival.feeder or arrival.path[0], ())
    joined = PeerRequest(state.context.client, peer, request.path, state.limits.wait_timeout, None)
    return Source(joined, span, body, state.limits, in_flight=arrival, is_joined=True)


async def _has_begun(incoming: Incoming, tap: Tap) -> bool:
    """Wait until the other transfer has its first bytes. Return whether it has, in time, and keeps them in memory."""
    try:
        async with Deadline(PATIENCE):
            while incoming.size is None or (incoming.ring is None and incoming.needs_ring):
                changed = incoming.changes.next_change
                if not incoming.has_other_source(tap):
                    return False
                await changed.wait()
    except TimeoutError:
        return False
    return incoming.ring is not None
