"""Requests content from the holders of one transfer: from one of them, or from several in a race."""

from __future__ import annotations

from collections.abc import Callable

from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.oci.ranges import ByteRange
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.relay.leases import LOOKUP_FACTOR, TransferLease
from peili.mirror.relay.race import Candidates, NotFaster, Open, RaceOptions, race
from peili.mirror.relay.rejections import Rejections
from peili.mirror.relay.replacement import measure, trial_range
from peili.mirror.relay.scores import HEALTHY, MUCH_FASTER
from peili.mirror.relay.source import Source
from peili.mirror.relay.state import RelayState, TransferRequest


class HolderRequests:
    """Sends the requests of one transfer, and rejects the holders that fail.

    The *named* holders are those in the answer of `Router.acquire`. More are *found* later by `Router.lookup`.

    Args:
        request: What to transfer.
        state: The state that all transfers share.
        lease: The router's lease for the transfer.
        rejections: The holders that are not asked again.

    Attributes:
        named: The named holders that may be asked, best first.
        uses_windows: Whether an open-ended range is requested in windows; see `parallel`.
        is_racing: Whether holders are racing for the next source, and none has won.
    """

    def __init__(
        self, request: TransferRequest, state: RelayState, lease: TransferLease, rejections: Rejections
    ) -> None:
        self.named: tuple[Holder, ...] = ()
        self.uses_windows = False
        self.is_racing = False
        self._request = request
        self._state = state
        self._lease = lease
        self._rejections = rejections

    async def open_at(self, holder: Holder, wanted: ByteRange | None, *, method: str = "GET") -> Source:
        """Open a source at `holder`. Raises PeerUnavailable."""
        state, request, is_whole = self._state, self._request, holder.complete
        windows = self.uses_windows and is_whole and wanted is not None and wanted.first
        return await Source.open(
            state.context.client,
            holder.peer,
            request.path,
            request.digest,
            wanted=wanted,
            limits=state.limits,
            check_span=self._rejections.check_size,
            parallel=state.parallel if windows else None,
            method=method,
            identity=None if is_whole else state.context.identity,
        )

    async def race(self, open_at: Open, trial: ByteRange | None, preferred: Peer | None) -> Source | None:
        """Race the named holders and those that are found later. One that is not healthy must pass a trial first.

        Args:
            open_at: Opens a source at one holder.
            trial: The range of a trial; None if there are no trials.
            preferred: This peer is asked first, without a trial.

        Returns:
            The source that won; None if all holders failed.
        """
        scores, is_alone = self._state.scores, len(self.named) == 1

        async def attempt(holder: Holder) -> Source:
            is_healthy = holder.peer == preferred or scores.rank(holder.peer.id) == HEALTHY
            if not (is_healthy or is_alone or trial is None):
                try:
                    await measure(await self.open_at(holder, trial), 0.0, scores)
                except PeerUnavailable as error:
                    if error.reason != FailureReason.REFUSED:  # a holder that refuses ranges may send the whole
                        raise
            return await open_at(holder)

        self.is_racing = True
        source = await race(self._candidates(preferred=preferred), attempt, self._race_options(self._rejections.fail))
        self.is_racing = False
        return source

    async def find_faster(self, source: Source, rate: float) -> Source | None:
        """Try other holders with the next bytes of `source`.

        Returns:
            A closed source at a holder that sends much more than `rate` bytes per second; None if there is none.
        """
        scores = self._state.scores
        trial = trial_range(source.offset, source.span.stop, scores.recent_failures)

        def may_be_faster(peer_id: str) -> bool:
            known = scores.rate(peer_id)
            return peer_id != source.peer.id and (known is None or known > MUCH_FASTER * rate)

        async def attempt(holder: Holder) -> Source:
            other = await self.open_at(holder, trial)
            if other.span.size != source.span.size:
                await other.aclose()
                raise NotFaster(f"peer {holder.peer.id} has another size for this digest")
            return await measure(other, rate, scores)

        def fail(peer: Peer, error: PeerUnavailable) -> None:
            if error.reason == FailureReason.BUSY:
                scores.record_failure(peer.id, error.reason)  # it may be asked again if the current source fails
                return
            end_reason = self._lease.end_reason
            self._rejections.fail(peer, error)
            self._lease.end_reason = end_reason  # a failed trial does not change how the transfer ends

        return await race(self._candidates(is_usable=may_be_faster), attempt, self._race_options(fail, is_trial=True))

    def _candidates(
        self, *, preferred: Peer | None = None, is_usable: Callable[[str], bool] = lambda _: True
    ) -> Candidates:
        state, digest = self._state, self._request.digest
        return Candidates(
            self.named,
            lambda: state.context.router.lookup(digest),
            state.scores,
            state.log,
            preferred=preferred,
            is_usable=lambda peer_id: peer_id not in self._rejections.reasons and is_usable(peer_id),
            is_doubted=lambda peer_id: state.blame.is_doubted(digest, peer_id),
            timeout=LOOKUP_FACTOR * state.limits.lookup_timeout,
        )

    def _race_options(
        self, on_failure: Callable[[Peer, PeerUnavailable], None], *, is_trial: bool = False
    ) -> RaceOptions:
        state = self._state

        def hesitated(peer: Peer) -> None:
            if not self.uses_windows:  # with windows, the request may only have waited for its turn
                state.scores.record_hesitation(peer.id)
                state.log.info("%s: peer %s hesitated; another was faster", self._request.digest, peer.id)

        return RaceOptions(
            on_failure=on_failure,
            on_hesitation=hesitated,
            delay=state.scores.hedge_delay(),
            hedge_delay=state.limits.hedge_delay,
            log=state.log,
            is_trial=is_trial,
        )
