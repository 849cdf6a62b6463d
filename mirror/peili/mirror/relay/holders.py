"""Opens sources for one transfer: races the holders, replaces a slow one, and continues at another one if one fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

from peili.mirror.errors import FailureReason, NotFound, PeerUnavailable
from peili.mirror.oci.ranges import ByteRange, Span
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.relay.leases import LOOKUP_FACTOR, TransferLease
from peili.mirror.relay.race import Candidates, NotFaster, Open, RaceOptions, race
from peili.mirror.relay.rejections import Rejections
from peili.mirror.relay.relay import RelayState, TransferRequest
from peili.mirror.relay.replacement import SourceWatcher, measure, trial_range
from peili.mirror.relay.reputation import HEALTHY, MUCH_FASTER
from peili.mirror.relay.source import Source

_REPLACEMENT_SHARE = 0.75
"""The part of ``limits.restarts`` that replacements by a faster holder may use. The rest is for failures."""


class Holders:
    """Opens sources for one transfer, one at a time. Its one owner calls `aclose`.

    The *named* holders are those in the answer of `Router.acquire`. More are *found* later by `Router.lookup`.

    Args:
        request: What to transfer.
        state: The state that all transfers share.

    Attributes:
        lease: The router's lease for the transfer.
        rejections: The holders that are not asked again.
        claimed_sizes: The sizes in the router's answer.
        trusts_claims: Whether content that is claimed to be small is requested whole. The transfer sets it.
        uses_windows: Whether an open-ended range is requested in windows; see `parallel`. The transfer sets it.
    """

    def __init__(self, request: TransferRequest, state: RelayState) -> None:
        self.lease = TransferLease(request.digest, state.context, state.metrics, state.releases)
        self.rejections = Rejections(request, state, self.lease)
        self.claimed_sizes: set[int] = set()
        self.trusts_claims = True
        self.uses_windows = False
        self._request = request
        self._state = state
        self._named: tuple[Holder, ...] = ()
        self._source: Source | None = None
        self._watcher: SourceWatcher | None = None
        self._replacement: Peer | None = None  # is asked first in the next race
        self._races = 0  # at most ``limits.restarts``

    async def open(self, wanted: ByteRange | None, *, whole_if_small: bool = False, head_only: bool = False) -> Source:
        """Close the previous source, and open one at the holder that wins the race.

        Args:
            wanted: The range to request; None for the whole content.
            whole_if_small: Request the whole content if it is known or claimed to be small, because only the whole can
                be verified. If its size is not known in advance, the source may still have a part of small content.
            head_only: Send a HEAD request. The source cannot be read.

        Raises:
            NotFound: No holder remains.
        """
        await self.disconnect()
        first = wanted.first if wanted is not None else 0
        stop = wanted.last + 1 if wanted is not None and wanted.last is not None else None
        trial = None if head_only or first is None else trial_range(first, stop)

        async def open_at(holder: Holder) -> Source:
            is_small = whole_if_small and self._is_small(holder)
            return await self._open_at(holder, None if is_small else wanted, method="HEAD" if head_only else "GET")

        while self._races < self._state.limits.restarts:
            self._races += 1
            try:
                self._named = self._usable(await self.lease.acquire(first or 0, self.rejections.reasons))
            except NotFound:
                if not await self.rejections.wait_for_busy():
                    raise
                self._races -= 1
                continue
            self._source = await self._race_named(open_at, trial)
            if self._source is not None:
                if not head_only:
                    self._watch(self._source)
                return self._source
        self._state.metrics.limited.add("restarts")
        raise NotFound(f"no peer would send {self._request.digest}")

    async def open_rest(self, peer: Peer, span: Span) -> Source:
        """Open a source for `span` at `peer` if possible, else at another holder.

        Raises:
            NotFound: No holder remains.
        """
        await self.disconnect()
        try:
            self._source = await self._open_at(Holder(peer, complete=True), ByteRange(span.start, span.stop - 1))
        except PeerUnavailable as error:
            self.rejections.fail(peer, error)
        else:
            if self._source.span == span:
                self._watch(self._source)
                return self._source
        return await self.resume(span.start, span)

    async def resume(self, offset: int, span: Span) -> Source:
        """Open a source at another holder.

        Args:
            offset: The first byte to request.
            span: The whole span, of which the source has the rest. A holder must state the same size of the content.

        Raises:
            NotFound: No holder remains, or the wait took too long.
        """
        wanted = ByteRange(offset, span.stop - 1)
        async with self.bounded_wait():
            while True:
                source = await self.open(wanted)
                if source.span.size == span.size:
                    return source
                self.rejections.fail_for_other_size(source.peer)

    async def disconnect(self) -> None:
        """Close the current source, if there is one.

        Records the rate and the success of its peer, and remembers a faster holder for the next race.
        """
        source, self._source = self._source, None
        if source is None:
            return
        watcher, self._watcher = self._watcher, None
        scores, progress = self._state.scores, source.progress()
        try:
            if progress is not None and (count := source.offset - source.span.start):
                scores.record_rate(source.peer.id, count, progress[1])
            if not source.remaining:
                scores.record_success(source.peer.id, source.started)
            if watcher is not None:
                await watcher.aclose()
                self._replacement = watcher.replacement
        finally:
            await source.aclose()

    async def aclose(self) -> None:
        """Close the source, and release the router's lease."""
        try:
            await self.disconnect()
        finally:
            await self.lease.aclose()

    @asynccontextmanager
    async def bounded_wait(self) -> AsyncGenerator[float]:
        """Bound the time of the body by ``limits.wait_timeout``.

        Yields:
            The deadline, by the loop's clock.

        Raises:
            NotFound: The body took too long.
        """
        deadline = asyncio.get_running_loop().time() + self._state.limits.wait_timeout
        try:
            async with asyncio.timeout_at(deadline):
                yield deadline
        except TimeoutError as error:
            self.lease.end_reason = FailureReason.SILENT
            self._state.metrics.limited.add("wait_timeout")
            raise NotFound(f"no peer sent {self._request.digest} in time") from error

    async def _race_named(self, open_at: Open, trial: ByteRange | None) -> Source | None:
        """Race the named holders and those that are found later. One that is not healthy must pass a trial first."""
        scores, preferred, is_alone = self._state.scores, self._replacement, len(self._named) == 1
        self._replacement = None

        async def attempt(holder: Holder) -> Source:
            is_healthy = holder.peer == preferred or scores.rank(holder.peer.id) == HEALTHY
            if not (is_healthy or is_alone or trial is None):
                try:
                    await measure(await self._open_at(holder, trial), 0.0, scores)
                except PeerUnavailable as error:
                    if error.reason != FailureReason.REFUSED:  # a holder that refuses ranges may send the whole
                        raise
            return await open_at(holder)

        return await race(self._candidates(preferred=preferred), attempt, self._race_options(self.rejections.fail))

    def _usable(self, holders: Sequence[Holder]) -> tuple[Holder, ...]:
        """Return the holders that may be asked, first the one that was faster than the last source. Raises NotFound.

        Holders with only a part of the content are not among them.
        """
        self.claimed_sizes.update(holder.size for holder in holders if holder.size is not None)
        preferred = self._replacement
        if preferred is not None:
            others = (holder for holder in holders if holder.peer.id != preferred.id)
            holders = (Holder(preferred, complete=True), *others)
        usable = tuple(each for each in holders if each.complete and each.peer.id not in self.rejections.reasons)
        if not usable:
            raise NotFound(f"no other peer has {self._request.digest}")
        return usable

    def _is_small(self, holder: Holder) -> bool:
        """Return whether the content is known, or claimed by `holder`, to be small enough to be collected whole."""
        size = self.rejections.size
        if size is None and self.trusts_claims:
            size = holder.size
        return size is not None and size <= self._request.collect_limit

    async def _open_at(self, holder: Holder, wanted: ByteRange | None, *, method: str = "GET") -> Source:
        """Open a source at `holder`. Raises PeerUnavailable."""
        state, request = self._state, self._request
        return await Source.open(
            state.context.client,
            holder.peer,
            request.path,
            request.digest,
            wanted=wanted,
            limits=state.limits,
            check_span=self.rejections.check_size,
            parallel=state.parallel if self.uses_windows and wanted is not None and wanted.first else None,
            method=method,
        )

    def _watch(self, source: Source) -> None:
        """Let a faster holder replace `source`, if enough restarts are left for failures."""
        state = self._state
        if self._races <= state.limits.restarts * _REPLACEMENT_SHARE:
            self._watcher = SourceWatcher(
                source, state.scores, state.limits, state.log, lambda rate: self._find_faster(source, rate)
            )

    async def _find_faster(self, source: Source, rate: float) -> Source | None:
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
            other = await self._open_at(holder, trial)
            if other.span.size != source.span.size:
                await other.aclose()
                raise NotFaster(f"peer {holder.peer.id} has another size for this digest")
            return await measure(other, rate, scores)

        def fail(peer: Peer, error: PeerUnavailable) -> None:
            if error.reason == FailureReason.BUSY:
                scores.record_failure(peer.id, error.reason)  # it may be asked again if the current source fails
                return
            end_reason = self.lease.end_reason
            self.rejections.fail(peer, error)
            self.lease.end_reason = end_reason  # a failed trial does not change how the transfer ends

        return await race(self._candidates(is_usable=may_be_faster), attempt, self._race_options(fail, is_trial=True))

    def _candidates(
        self, *, preferred: Peer | None = None, is_usable: Callable[[str], bool] = lambda _: True
    ) -> Candidates:
        state, digest = self._state, self._request.digest
        return Candidates(
            self._named,
            lambda: state.context.router.lookup(digest),
            state.scores,
            state.log,
            preferred=preferred,
            is_usable=lambda peer_id: peer_id not in self.rejections.reasons and is_usable(peer_id),
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
