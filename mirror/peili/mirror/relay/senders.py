"""Who sent the bytes of one transfer that are not verified yet, and who is blamed if they are wrong."""

from __future__ import annotations

from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.peers import Peer
from peili.mirror.relay.blame import IN_FLIGHT
from peili.mirror.relay.rejections import Rejections
from peili.mirror.relay.source import Source
from peili.mirror.relay.state import RelayState


class Senders:
    """The peers that sent unverified bytes of one transfer.

    A peer with the whole content has verified it, so it is to blame if its bytes are wrong. A peer that was still
    receiving the content passed on what nobody had verified: the wrong byte may have entered anywhere before it. If
    there was such a peer, nobody is blamed here; see `tracing`.

    Args:
        digest: What is transferred.
        state: The state that all transfers share.
        rejections: The holders that the transfer does not ask again.

    Attributes:
        feeders: The peers that sent bytes while they still received the content themselves.
    """

    def __init__(self, digest: Digest, state: RelayState, rejections: Rejections) -> None:
        self._digest = digest
        self._state = state
        self._rejections = rejections
        self.feeders: set[Peer] = set()
        self._size: int | None = None  # of the whole content, as the last peer stated it
        self._stopped_at: dict[str, int] = {}  # the ids, or `IN_FLIGHT`, each with the byte at which the peer stopped

    def add(self, source: Source) -> None:
        """Note that `source` was read up to its current offset."""
        self._size = source.span.size
        if source.in_flight is None:
            self._stopped_at[source.peer.id] = source.offset
        else:
            self._stopped_at[IN_FLIGHT] = source.offset
            self.feeders.add(source.peer)

    def clear(self) -> None:
        """Forget all senders: their bytes are right, or discarded."""
        self._stopped_at.clear()
        self.feeders.clear()

    def since(self, offset: int) -> frozenset[str]:
        """Return the senders of the bytes from `offset` on."""
        return frozenset(sender for sender, stop in self._stopped_at.items() if stop > offset)

    def suspect(self) -> None:
        """Note that the runtime has these bytes, which may turn out to be wrong later."""
        self._state.blame.suspect(self._digest, self._stopped_at.keys())

    def blame(self, *, is_continuation: bool) -> None:
        """Blame the senders for wrong bytes.

        Args:
            is_continuation: Whether the runtime had the beginning already. Then its senders are blamed, too.
        """
        suspects = self._state.blame.suspects(self._digest) if is_continuation else frozenset[str]()
        senders = suspects.union(self._stopped_at)
        is_certain = len(senders) == 1 and (not is_continuation or bool(suspects))
        blame_senders(senders, self._rejections, is_certain=is_certain, size=self._size)


def blame_senders(
    senders: frozenset[str], rejections: Rejections, *, is_certain: bool, size: int | None = None
) -> None:
    """Blame `senders` for wrong bytes, or nobody if one of them was still receiving the content.

    Args:
        senders: Ids, or `IN_FLIGHT`. At least one of them sent a wrong byte.
        rejections: The holders that the transfer does not ask again.
        is_certain: Whether all of them did.
        size: The size of the whole content in bytes, if it is known.
    """
    if IN_FLIGHT in senders:
        rejections.exclude(senders - {IN_FLIGHT})
    else:
        rejections.blame_for_wrong_bytes(senders, is_certain=is_certain, size=size)
