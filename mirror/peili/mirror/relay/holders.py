"""Opens sources for one transfer: races the holders, replaces a slow one, and continues at another one if one fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from peili.mirror.content.incoming import Tap
from peili.mirror.errors import FailureReason, NotFound, PeerUnavailable
from peili.mirror.limits import MIB
from peili.mirror.oci.ranges import ByteRange, Span
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.plugins.acquiring import Want
from peili.mirror.plugins.calls import shows_in_flight
from peili.mirror.relay.feeder import Feeder, Superseded
from peili.mirror.relay.holder_requests import HolderRequests
from peili.mirror.relay.joining import open_joined
from peili.mirror.relay.leases import TransferLease
from peili.mirror.relay.rejections import Rejections
from peili.mirror.relay.replacement import SourceWatcher, trial_range
from peili.mirror.relay.source import Source
from peili.mirror.relay.state import RelayState, TransferRequest

_PATIENCE = 0.9
"""The part of ``limits.wait_timeout`` that a transfer waits for one feeder. The rest is for one more try."""
_MAX_SLOW_FEEDERS = 2
"""If this many feeders are slow, this host itself is, and the next feeder may be as slow as it is."""
_TRACE_PATIENCE = 5.0
"""Seconds for which a transfer waits until it is known where a wrong byte entered. A host on the way may be silent."""
_REPLACEMENT_SHARE = 0.75
"""The part of ``limits.restarts`` that replacements by a better holder may use. The rest is for failures."""


class Holders:
    """Opens sources for one transfer, one at a time. Its one owner calls `aclose`.

    Args:
        request: What to transfer.
        state: The state that all transfers share.

    Attributes:
        lease: The router's lease for the transfer.
        rejections: The holders that are not asked again.
        requests: Sends the requests.
        claimed_sizes: The sizes in the router's answer.
        trusts_claims: Whether content that is claimed to be small is requested whole. The transfer sets it.
        reads_in_flight: Whether the transfer also reads from holders that still receive the content. It sets this.
        tap: Is told from which feeder the transfer tries to read. The transfer sets it.
    """

    def __init__(self, request: TransferRequest, state: RelayState) -> None:
        self.lease = TransferLease(request.digest, state.context, state.metrics, state.releases)
        self.rejections = Rejections(request, state, self.lease)
        self.requests = HolderRequests(request, state, self.lease, self.rejections)
        self.claimed_sizes: set[int] = set()
        self.trusts_claims = True
        self.reads_in_flight = True
        self.tap: Tap | None = None
        self._request = request
        self._state = state
        self._source: Source | None = None
        self._watcher: SourceWatcher | None = None
        self._feeder: Feeder | None = None
        self._supersession: asyncio.Task[None] | None = None
        self._waited = 0.0  # seconds without a byte from the last source
        self._replacement: Peer | None = None  # is asked first in the next race
        self._may_join = True
        self._stated_size: int | None = None  # by the source that is being replaced
        self._races = 0  # at most ``limits.restarts``

    async def open(self, wanted: ByteRange | None, *, whole_if_small: bool = False, head_only: bool = False) -> Source:
        """Close the previous source, and open one at the holder that wins the race, or at a feeder if none is whole.

        Args:
            wanted: The range to request; None for the whole content.
            whole_if_small: Request the whole content if it is known or claimed to be small, because only the whole can
                be verified. If its size is not known in advance, the source may still have a part of small content.
            head_only: Send a HEAD request. The source cannot be read.

        Raises:
            NotFound: No holder remains.
        """
        await self.disconnect()
        requests = self.requests
        first = wanted.first if wanted is not None else 0
        stop = wanted.last + 1 if wanted is not None and wanted.last is not None else None
        trial = None if head_only or first is None else trial_range(first, stop)

        async def open_at(holder: Holder) -> Source:
            is_small = whole_if_small and self._is_small(holder)
            return await requests.open_at(holder, None if is_small else wanted, method="HEAD" if head_only else "GET")

        if not head_only and (joined := await self._join(wanted, whole_if_small=whole_if_small)) is not None:
            self._source = joined
            return joined
        while self._races < self._state.limits.restarts:
            self._races += 1
            preferred: Peer | None = None
            try:
                await self._ask_router(first, to_end=stop in {None, self._stated_size}, head_only=head_only)
            except NotFound:
                if not await self.rejections.wait_for_busy():
                    raise
                self._races -= 1
                continue
            holder = requests.named[0]
            if holder.complete:
                preferred, self._replacement = self._replacement, None
                self._source = await requests.race(open_at, trial, preferred)
            else:
                is_small = whole_if_small and self._is_small(holder)
                self._source = await self._open_feeder(holder, None if is_small else wanted)
            if self._source is not None:
                self._log_choice(self._source, preferred)
                if not head_only:
                    self._begin_reading(self._source)
                return self._source
        self._state.metrics.limited.add("restarts")
        raise NotFound(f"no peer would send {self._request.digest}")

    def _log_choice(self, source: Source, preferred: Peer | None) -> None:
        if source.in_flight is not None:
            reason = "where it still arrives, because no holder has it whole"
        elif source.peer == preferred:
            reason = "because it was much faster than the last holder"
        else:
            reason = f"the first that delivers of {', '.join(each.peer.id for each in self.requests.named)}"
        start = source.span.start
        self._state.log.debug(
            "%s: read from %s from byte %d on, %s", self._request.digest, source.peer.id, start, reason
        )

    async def open_rest(self, previous: Source, span: Span) -> Source:
        """Open a source for `span` at the peer of the `previous` source if possible, else at another holder.

        Raises:
            NotFound: No holder remains.
        """
        await self.disconnect()
        if previous.in_flight is None:
            holder = Holder(previous.peer, complete=True)
            try:
                self._source = await self.requests.open_at(holder, ByteRange(span.start, span.stop - 1))
            except PeerUnavailable as error:
                self.rejections.fail(previous.peer, error)
            else:
                if self._source.span == span:
                    self._begin_reading(self._source)
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
        self._stated_size = span.size
        await self.disconnect()
        async with self.bounded_wait():
            while True:
                source = await self.open(wanted)
                if source.span.size == span.size:
                    return source
                await self.fail(source, self.rejections.other_size(source.peer))

    async def fail(self, source: Source, error: PeerUnavailable) -> PeerUnavailable:
        """Record that reading from `source` failed; see `Rejections`. Return the error with its true reason."""
        if source.in_flight is None:
            self.rejections.fail(source.peer, error)
            return error
        if self._feeder is not None:
            error = await self._feeder.explain(error)
        self.rejections.fail_in_flight(source.peer, error)
        return error

    async def disconnect(self) -> None:
        """Close the current source, if there is one.

        Records the rate and the success of its peer, and remembers a faster holder for the next race.
        """
        source, self._source = self._source, None
        if source is None:
            await self._leave_feeder()  # if its opening was cancelled
            return
        watcher, self._watcher = self._watcher, None
        scores, progress = self._state.scores, source.progress()
        if (supersession := self._supersession) is not None:
            supersession.cancel()
            self._supersession = None
        try:
            count = source.offset - source.span.start
            if source.in_flight is not None:  # what it sends depends on others, so its rate means nothing
                self._races -= count >= MIB  # a long transfer may have many feeders, if it makes progress with each
            else:
                if progress is not None and count:
                    scores.record_rate(source.peer.id, count, progress[1])
                if not source.remaining:
                    scores.record_success(source.peer.id, source.started)
            if watcher is not None:
                await watcher.aclose()
                self._replacement = watcher.replacement
            await self._leave_feeder()
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
        """Bound the time of the body by ``limits.wait_timeout``, less the time without a byte from the last source.

        Yields:
            The deadline, by the loop's clock.

        Raises:
            NotFound: The body took too long.
        """
        limit = self._state.limits.wait_timeout
        deadline = asyncio.get_running_loop().time() + max(limit - self._waited, (1 - _PATIENCE) * limit)
        try:
            async with asyncio.timeout_at(deadline):
                yield deadline
        except TimeoutError as error:
            self._state.metrics.limited.add("wait_timeout")
            is_silent = self.requests.is_racing or (self._source is not None and self._source.in_flight is None)
            self.lease.end_reason = FailureReason.SILENT if is_silent else FailureReason.WAITING
            if self._feeder is not None:
                self._state.blame.bar_in_flight(self._request.digest, limit)
            raise NotFound(f"no peer sent {self._request.digest} in time") from error

    async def _join(self, wanted: ByteRange | None, *, whole_if_small: bool) -> Source | None:
        """Open a source for what another transfer of this host receives, if this transfer has not read anything yet."""
        may_join, self._may_join = self._may_join, False
        if self.tap is None or not may_join or self.requests.uses_windows:
            return None
        return await open_joined(self._state, self._request, self.tap, wanted, whole_if_small=whole_if_small)

    async def _ask_router(self, first: int | None, *, to_end: bool, head_only: bool) -> None:
        """Ask the router which holders may be asked. Raises NotFound if there is none."""
        if not head_only:
            await self._wait_for_trace()
        want = self._want(first, to_end=to_end, head_only=head_only)
        try:
            answer = await self.lease.acquire(want)
        except NotFound:
            if self.reads_in_flight:  # else the runtime may only have asked whether there is such content
                self._state.followed.give_up(self._request.digest)
            raise
        self._state.followed.confirm(self._request.digest)
        self.requests.named = self._usable(answer, accepts_in_flight=want.accepts_in_flight)

    async def _wait_for_trace(self) -> None:
        """Wait until it is known where a wrong byte entered. Until then, this host would get a copy from upstream.

        All hosts that got the byte may pull again at the same moment.
        """
        trace = self._state.traces.get(self._request.digest)
        if trace is not None and self.reads_in_flight:
            await asyncio.wait([trace], timeout=_TRACE_PATIENCE)

    async def _open_feeder(self, holder: Holder, wanted: ByteRange | None) -> Source | None:
        """Open a source at a holder that still receives the content. Return None if it failed."""
        limits, slow = self._state.limits, list(self.rejections.reasons.values()).count(FailureReason.SLOW)
        self._feeder = feeder = Feeder(
            holder,
            self._request.digest,
            self._state.context,
            self.lease,
            path=self._request.path,
            offset=(wanted.first or 0) if wanted is not None else 0,
            patience=_PATIENCE * limits.wait_timeout,
            checks_rate=slow < _MAX_SLOW_FEEDERS,
        )
        if self.tap is not None:  # before the request: if both hosts wait for each other, they find out
            self.tap.read_from(lambda: feeder.chain, needs_ring=True)
        try:
            source = await feeder.open(self.requests.open_at(holder, wanted))
        except PeerUnavailable as error:
            await self._leave_feeder()
            self.rejections.fail_in_flight(holder.peer, error)
            return None
        if source.in_flight is None:  # it has become whole
            await self._leave_feeder()
        return source

    async def _leave_feeder(self) -> None:
        feeder, self._feeder = self._feeder, None
        if feeder is not None:
            self._waited = feeder.waited
            if self.tap is not None:
                self.tap.stop_reading()
            await feeder.aclose()

    def _want(self, first: int | None, *, to_end: bool, head_only: bool) -> Want:
        """Return what to ask the router for. ``first is None`` means a range at the end of unknown length."""
        state, digest = self._state, self._request.digest
        is_allowed = self.reads_in_flight and not state.blame.is_barred_in_flight(digest)
        accepts_in_flight = is_allowed and first is not None and not head_only
        barred = dict.fromkeys(state.blame.barred_peers(digest) if accepts_in_flight else (), FailureReason.BROKEN)
        return Want(
            digest,
            first or 0,
            {**barred, **self.rejections.reasons},
            size=self.rejections.size,
            can_share=accepts_in_flight and to_end and shows_in_flight(state.context),
            accepts_in_flight=accepts_in_flight,
            follows=accepts_in_flight and digest in state.followed,
        )

    def _usable(self, holders: Sequence[Holder], *, accepts_in_flight: bool) -> tuple[Holder, ...]:
        """Return the holders that may be asked, first the one that was faster than the last source. Raises NotFound.

        If no holder has the whole content, and `accepts_in_flight`, this is the first one that still receives it.
        """
        self.claimed_sizes.update(holder.size for holder in holders if holder.size is not None)
        preferred = self._replacement
        if preferred is not None:
            others = (holder for holder in holders if holder.peer.id != preferred.id)
            holders = (Holder(preferred, complete=True), *others)
        holders = [each for each in holders if each.peer.id not in self.rejections.reasons]
        barred = self._state.blame.barred_peers(self._request.digest)
        feeders = [each for each in holders if accepts_in_flight and each.peer.id not in barred]
        usable = tuple(each for each in holders if each.complete) or tuple(feeders[:1])
        if not usable:
            raise NotFound(f"no other peer has {self._request.digest}")
        return usable

    def _is_small(self, holder: Holder) -> bool:
        """Return whether the content is known, or claimed by `holder`, to be small enough to be collected whole."""
        size = self.rejections.size
        if size is None and self.trusts_claims:
            size = holder.size
        return size is not None and size <= self._request.collect_limit

    def _begin_reading(self, source: Source) -> None:
        """Watch `source` while it is read: if a better holder is known, it is interrupted."""
        self._waited = 0.0
        if self._feeder is not None:
            return  # it watches the source, and has reported it
        self.lease.use(Holder(source.peer, complete=True, size=source.span.size))
        state = self._state
        if self._races > state.limits.restarts * _REPLACEMENT_SHARE:
            return  # the other restarts are for failures
        if self.lease.may_be_superseded:
            self._supersession = asyncio.create_task(self._interrupt_when_superseded(source))
        self._watcher = SourceWatcher(
            source, state.scores, state.limits, state.log, lambda rate: self.requests.find_faster(source, rate)
        )

    async def _interrupt_when_superseded(self, source: Source) -> None:
        await self.lease.superseded()
        source.interrupt(Superseded(f"the router has a better holder than {source.peer.id} now"))
