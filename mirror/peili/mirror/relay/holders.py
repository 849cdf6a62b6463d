"""Opens sources for one transfer: races the holders, replaces a slow one, and continues at another one if one fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

from peili.mirror.errors import FailureReason, NotFound, PeerUnavailable
from peili.mirror.oci.ranges import ByteRange, Span
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.relay.leases import LOOKUP_FACTOR, TransferLease
from peili.mirror.relay.race import Candidates, NotFaster, Open, RaceOptions, race
from peili.mirror.relay.relay import RelayState, TransferRequest
from peili.mirror.relay.replacement import Replaced, SourceWatcher, measure, trial_range
from peili.mirror.relay.reputation import HEALTHY, MUCH_FASTER
from peili.mirror.relay.source import OutOfRange, Source

_REPLACEMENT_SHARE = 0.75
"""The part of ``limits.restarts`` that replacements by a faster holder may use. The rest is for failures."""


class Holders:
    """Opens sources for one transfer, one at a time. Its one owner calls `aclose`.

    The *named* holders are those in the answer of `Router.acquire`. More are *found* later by `Router.lookup`.

    A holder can be rejected for the size that it states. It is asked again if the reason no longer applies:

    - It states another size than a manifest (`is_size_disputed`). The runtime may know the right size (`accept_size`).
    - It states another size than the previous source, which may be the wrong one (`readmit_other_sizes`).
    - It has no byte of the range (`size_out_of_range`). Another range may be requested (`readmit_out_of_range`).

    Args:
        request: What to transfer.
        state: The state that all transfers share.

    Attributes:
        lease: The router's lease for the transfer.
        size: The size of the content in bytes; None while it is not known. The transfer sets it, too.
        claimed_sizes: The sizes in the router's answer.
        trusts_claims: Whether content that is claimed to be small is requested whole. The transfer sets it.
        uses_windows: Whether an open-ended range is requested in windows; see `parallel`. The transfer sets it.
    """

    def __init__(self, request: TransferRequest, state: RelayState) -> None:
        self.lease = TransferLease(request.digest, state.context, state.metrics, state.releases)
        self.size = state.sizes.get(request.digest)
        self.claimed_sizes: set[int] = set()
        self.trusts_claims = True
        self.uses_windows = False
        self._request = request
        self._state = state
        self._failed = state.blame.excluded(request.digest)  # why each peer is not asked (again)
        self._named: tuple[Holder, ...] = ()
        self._source: Source | None = None
        self._watcher: SourceWatcher | None = None
        self._replacement: Peer | None = None  # is asked first in the next race
        self._races = 0  # at most ``limits.restarts``
        self._of_other_size: set[str] = set()
        self._of_unexpected_size: set[str] = set()
        self._out_of_range: dict[str, int] = {}  # peers that have no byte of the range, and the sizes that they state

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
                self._named = self._usable(await self.lease.acquire(first or 0, self._failed))
            except NotFound:
                if not await self._wait_for_busy():
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
            self.fail(peer, error)
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
                # One of the two sizes is wrong. Only the digest can show which one, so the parts cannot be combined.
                peer_id = source.peer.id
                error = PeerUnavailable(f"peer {peer_id} has another size for this digest", FailureReason.REFUSED)
                self.fail(source.peer, error)
                self._of_other_size.add(peer_id)

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

    def fail(self, peer: Peer, error: PeerUnavailable) -> None:
        """Record that `peer` failed, log it and count it.

        The peer is not asked again in this transfer, unless it was only `Replaced`. It gets a worse score and is blamed
        for the blob, unless `error` is `OutOfRange`. The lease ends with the reason of the failure, unless the transfer
        continues.

        Args:
            peer: The peer.
            error: Why it failed.
        """
        if not isinstance(error, OutOfRange) and not (error.reason == FailureReason.BUSY and self._is_shared):
            self._state.scores.record_failure(peer.id, error.reason)
        self.lease.end_reason = error.reason
        if isinstance(error, Replaced):
            self._state.metrics.failures.add(error.reason)
            self._state.log.info("%s: replaced: %s", self._request.digest, error)
            return
        self._failed[peer.id] = error.reason
        if isinstance(error, OutOfRange):
            self._out_of_range[peer.id] = error.size  # the peer can serve another range
            return
        self._state.blame.record(self._request.digest, peer.id, error.reason)
        level = logging.WARNING if error.reason == FailureReason.WRONG else logging.INFO
        self._state.log.log(level, "%s: passed over: %s", self._request.digest, error)

    def blame_for_wrong_bytes(self, peer_ids: Collection[str], *, is_certain: bool) -> None:
        """Record that these peers may have sent wrong bytes. None of them is asked again in this transfer.

        Args:
            peer_ids: The ids of the peers. At least one of them sent wrong bytes.
            is_certain: Whether all of them did.
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

    def exclude(self, peer_ids: Collection[str]) -> None:
        """Do not ask these peers again in this transfer, but do not blame them."""
        if peer_ids:
            self._failed |= dict.fromkeys(peer_ids, FailureReason.WRONG)
            self.lease.end_reason = FailureReason.WRONG

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

    def _readmit(self, peer_ids: Collection[str]) -> None:
        for peer_id in peer_ids:
            self._failed.pop(peer_id, None)

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

        return await race(self._candidates(preferred=preferred), attempt, self._race_options(self.fail))

    def _usable(self, holders: Sequence[Holder]) -> tuple[Holder, ...]:
        """Return the holders that may be asked, first the one that was faster than the last source. Raises NotFound.

        Holders with only a part of the content are not among them.
        """
        self.claimed_sizes.update(holder.size for holder in holders if holder.size is not None)
        preferred = self._replacement
        if preferred is not None:
            others = (holder for holder in holders if holder.peer.id != preferred.id)
            holders = (Holder(preferred, complete=True), *others)
        usable = tuple(each for each in holders if each.complete and each.peer.id not in self._failed)
        if not usable:
            raise NotFound(f"no other peer has {self._request.digest}")
        return usable

    def _is_small(self, holder: Holder) -> bool:
        """Return whether the content is known, or claimed by `holder`, to be small enough to be collected whole."""
        size = self.size
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
            check_span=self.check_size,
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
            self.fail(peer, error)
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
            is_usable=lambda peer_id: peer_id not in self._failed and is_usable(peer_id),
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

    @property
    def _is_shared(self) -> bool:
        """Whether a busy holder may be busy with other requests of this host for the same blob."""
        return self._request.is_continuation and self._state.parallel.is_shared(self._request.digest)

    async def _wait_for_busy(self) -> bool:
        """Wait until holders that are busy with requests of this host may be asked again. `bounded_wait` bounds it.

        Returns:
            Whether there are such holders.
        """
        busy = [peer_id for peer_id, reason in self._failed.items() if reason == FailureReason.BUSY]
        if not busy or not self._is_shared:
            return False
        await self._state.parallel.wait_change()
        self._readmit(busy)
        return True
