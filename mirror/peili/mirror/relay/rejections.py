"""Which holders one transfer cannot use, and why: they failed, or the size that they state is not the expected one."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping

from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.oci.ranges import Span
from peili.mirror.peer_api.peers import Peer
from peili.mirror.plugins.acquiring import LeaseEnd
from peili.mirror.relay.feeder import Superseded
from peili.mirror.relay.joined_body import NotJoined
from peili.mirror.relay.leases import TransferLease
from peili.mirror.relay.replacement import Replaced
from peili.mirror.relay.responses import OutOfRange
from peili.mirror.relay.state import RelayState, TransferRequest
from peili.mirror.relay.tracing import ask_suspects

_NO_ANSWER = frozenset({FailureReason.UNREACHABLE, FailureReason.SILENT})


class Rejections:
    """The holders that one transfer does not ask again.

    A holder can be rejected for the size that it states. It is asked again if the reason no longer applies:

    - It states another size than a manifest (`is_size_disputed`). The runtime may know the right size (`accept_size`).
    - It states another size than the previous source, which may be the wrong one (`readmit_other_sizes`).
    - It has no byte of the range (`size_out_of_range`). Another range may be requested (`readmit_out_of_range`).

    Args:
        request: What to transfer.
        state: The state that all transfers share.
        lease: The router's lease for the transfer. It ends with the reason of the last failure.

    Attributes:
        size: The size of the content in bytes; None while it is not known. The transfer sets it, too.
    """

    def __init__(self, request: TransferRequest, state: RelayState, lease: TransferLease) -> None:
        self.size = state.sizes.get(request.digest)
        self._request = request
        self._state = state
        self._lease = lease
        self._reasons = state.blame.excluded(request.digest)
        self._of_other_size: set[str] = set()
        self._of_unexpected_size: set[str] = set()
        self._out_of_range: dict[str, int] = {}  # peers that have no byte of the range, and the sizes that they state

    @property
    def reasons(self) -> Mapping[str, str]:
        """The ids of the rejected holders, each with the reason; see `Want.failed`."""
        return self._reasons

    def fail(self, peer: Peer, error: PeerUnavailable) -> None:
        """Record that `peer` failed, log it and count it.

        The peer is not asked again in this transfer, unless it was only `Replaced` or `Superseded`. It gets a worse
        score and is blamed for the blob, unless `error` is `OutOfRange` or `Superseded`. The lease ends with the reason
        of the failure, unless the transfer continues.

        Args:
            peer: The peer.
            error: Why it failed.
        """
        if isinstance(error, Superseded | NotJoined):
            self._lease.end_reason = LeaseEnd.SUPERSEDED
            self._state.log.info("%s: %s", self._request.digest, error)
            return
        if not isinstance(error, OutOfRange) and not (error.reason == FailureReason.BUSY and self.is_shared):
            self._state.scores.record_failure(peer.id, error.reason)
        self._lease.end_reason = error.reason
        if isinstance(error, Replaced):
            self._state.metrics.failures.add(error.reason)
            self._state.log.info("%s: replaced: %s", self._request.digest, error)
            return
        self._reasons[peer.id] = error.reason
        if isinstance(error, OutOfRange):
            self._out_of_range[peer.id] = error.size  # the peer can serve another range
            return
        self._state.blame.record(self._request.digest, peer.id, error.reason)
        level = logging.WARNING if error.reason == FailureReason.WRONG else logging.INFO
        self._state.log.log(level, "%s: passed over: %s", self._request.digest, error)

    def fail_in_flight(self, peer: Peer, error: PeerUnavailable) -> None:
        """Like `fail`, for a peer that still receives the content.

        Only a peer that does not answer gets a worse score: one that has nothing to send may be good for other content.
        If this host has waited for too long, it waits for nobody again for a while, so that its runtime goes upstream.
        """
        digest, state = self._request.digest, self._state
        if error.reason in _NO_ANSWER or isinstance(error, Superseded | NotJoined):
            self.fail(peer, error)
            return
        self._lease.end_reason = error.reason
        self._reasons[peer.id] = error.reason
        state.metrics.failures.add(error.reason)
        state.log.info("%s: passed over: %s", digest, error)
        if isinstance(error, OutOfRange):
            self._out_of_range[peer.id] = error.size
        if error.reason == FailureReason.WAITING:
            state.metrics.limited.add("wait_timeout")
            state.blame.bar_in_flight(digest, state.limits.wait_timeout)

    def other_size(self, peer: Peer) -> PeerUnavailable:
        """Return the error for a peer that states another size than the previous source.

        One of the two sizes is wrong. Only the digest can show which one, so the parts cannot be combined.
        """
        self._of_other_size.add(peer.id)
        return PeerUnavailable(f"peer {peer.id} has another size for this digest", FailureReason.REFUSED)

    def blame_for_wrong_bytes(self, peer_ids: Collection[str], *, is_certain: bool, size: int | None) -> None:
        """Record that these peers may have sent wrong bytes. None of them is asked again in this transfer.

        In the background, they are asked to compare their copies with the digest.

        Args:
            peer_ids: The ids of the peers. At least one of them sent wrong bytes.
            is_certain: Whether all of them did.
            size: The size of the whole content in bytes, if it is known.
        """
        state, digest = self._state, self._request.digest
        self.exclude(peer_ids)
        for peer_id in sorted(peer_ids):
            if is_certain:
                state.scores.record_failure(peer_id, FailureReason.WRONG)
                state.blame.record(digest, peer_id, FailureReason.WRONG)
                state.log.warning("%s: peer %s sent wrong bytes; it is quarantined for this blob", digest, peer_id)
            else:
                state.blame.doubt(digest, peer_id)
                state.log.warning("%s: peer %s may have sent wrong bytes; it is asked last", digest, peer_id)
        state.background.start(ask_suspects(digest, frozenset(peer_ids), size, state))

    def bar_in_flight(self) -> None:
        """Record that bytes which nobody had verified are wrong. For a while, only whole holders are asked."""
        state, digest = self._state, self._request.digest
        self._lease.end_reason = FailureReason.WRONG
        state.metrics.failures.add(FailureReason.WRONG)
        state.blame.bar_in_flight(digest, state.limits.quarantine_ttl)
        state.log.warning("%s: bytes that were read in flight are wrong; now only whole holders are asked", digest)

    def exclude(self, peer_ids: Collection[str]) -> None:
        """Do not ask these peers again in this transfer, but do not blame them."""
        if peer_ids:
            self._reasons |= dict.fromkeys(peer_ids, FailureReason.WRONG)
            self._lease.end_reason = FailureReason.WRONG

    def check_size(self, peer: Peer, span: Span) -> None:
        """Check the size that a peer states.

        Args:
            peer: The peer.
            span: What the peer sends, with the size of the whole content.

        Raises:
            PeerUnavailable: The content cannot have this size.
        """
        request, limits, metrics = self._request, self._state.limits, self._state.metrics
        if request.is_manifest and span.size > request.collect_limit:
            metrics.limited.add("manifest_size")
            problem = f"{span.size} bytes are too many for a manifest"
            raise PeerUnavailable(f"peer {peer.id}: {problem}", FailureReason.REFUSED)
        if self.size is None and span.size > limits.blob_size:
            metrics.limited.add("blob_size")
            problem = f"states {span.size} bytes; more than {limits.blob_size} bytes are not accepted"
            raise PeerUnavailable(f"peer {peer.id} {problem}", FailureReason.WRONG)
        if self.size is not None and span.size != self.size:
            # The expected size comes from a manifest or the runtime, and so from the author of the image, who may be
            # wrong. The peer is to blame only if the size was verified.
            reason = FailureReason.WRONG
            if not self._state.sizes.is_verified(request.digest):
                reason = FailureReason.REFUSED
                self._of_unexpected_size.add(peer.id)
            raise PeerUnavailable(f"peer {peer.id} states {span.size} bytes; {self.size} are expected", reason)

    @property
    def is_size_disputed(self) -> bool:
        """Whether a holder was rejected only because a manifest states another size."""
        return bool(self._of_unexpected_size)

    def accept_size(self, size: int | None) -> bool:
        """Use the size that the runtime expects, in place of that of a manifest, which may be of another image.

        Returns:
            Whether holders that were rejected for their size are asked again.
        """
        rejected, self._of_unexpected_size = self._of_unexpected_size, set[str]()
        if not rejected or size is None or size == self.size:
            return False
        self.size = size
        self._readmit(rejected)
        return True

    def readmit_other_sizes(self) -> bool:
        """Ask those holders again that failed only because they state another size than the previous source.

        Returns:
            Whether there are any.
        """
        readmitted, self._of_other_size = self._of_other_size, set[str]()
        self._readmit(readmitted)
        return bool(readmitted)

    def size_out_of_range(self) -> int | None:
        """Return the size that all holders without a byte of the range state; None if they disagree or none exists."""
        sizes = set(self._out_of_range.values())
        return sizes.pop() if len(sizes) == 1 else None

    def readmit_out_of_range(self) -> None:
        """Ask those holders again that have no byte of the range: another range will be requested."""
        self._readmit(self._out_of_range)
        self._out_of_range.clear()

    @property
    def is_shared(self) -> bool:
        """Whether a busy holder may be busy with other requests of this host for the same blob."""
        return self._request.is_continuation and self._state.parallel.is_shared(self._request.digest)

    async def wait_for_busy(self) -> bool:
        """Wait until holders that are busy with requests of this host may be asked again. The caller bounds the wait.

        Returns:
            Whether there are such holders.
        """
        busy = [peer_id for peer_id, reason in self._reasons.items() if reason == FailureReason.BUSY]
        if not busy or not self.is_shared:
            return False
        await self._state.parallel.wait_change()
        self._readmit(busy)
        return True

    def _readmit(self, peer_ids: Iterable[str]) -> None:
        for peer_id in peer_ids:
            self._reasons.pop(peer_id, None)
