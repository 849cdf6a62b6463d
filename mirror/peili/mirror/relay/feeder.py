"""Reads from a *feeder*: a holder that still receives the content itself, and so may have nothing to send for a while.

A feeder that sends nothing is asked, beside the transfer, what it waits for (``HEAD /_router/keys/KEY``). It is left
only if it does not answer, or sends much less than it has, or if nothing will come from it. If it merely waits, so does
this host: leaving it would help nobody, because another feeder waits for the same bytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, NamedTuple

from peili.mirror.client.connection import ResponseHead
from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.limits import MIB
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.keys import InFlight, key_path
from peili.mirror.peer_api.peers import Holder
from peili.mirror.plugins.interfaces import Context
from peili.mirror.relay.leases import TransferLease
from peili.mirror.relay.responses import in_flight_headers, read_in_flight
from peili.mirror.relay.source import Source
from peili.mirror.support.tasks import Tasks

_CHECKS_PER_DELAY = 2
"""How often a feeder is checked during a hedge delay."""
_SILENT_INTERVAL, _BUSY_INTERVAL = 2, 4
"""How often a feeder is asked, in hedge delays: while it sends nothing, and while it sends."""
_MAX_UNANSWERED = 2
"""A silent feeder that does not answer this many questions is left. One may be lost on a busy machine."""
_MAX_WITHHELD = 3
"""A silent feeder that has more bytes in this many answers is left. Bytes on their way may cause one."""
_SLOWEST_SHARE = 8
"""A feeder is slow if it receives this many times what it sends to this host. With several children, it sends each of
them only a part of what it receives.
"""
_LEAST_BACKLOG = 4 * MIB
"""A feeder is not slow if it has fewer bytes than this that it has not sent to this host."""
_WAITING_SHARE = 0.8
"""The rate counts only if this host waited for the feeder for at least this share of the time."""


class Superseded(PeerUnavailable):
    """The router has a better answer now. The peer did nothing wrong."""


class _Sample(NamedTuple):
    """Where the transfer stood at a moment: by the loop's clock, with the seconds that this host waited so far."""

    time: float
    received: int
    waited: float
    available: int


class Feeder:
    """One feeder, while a transfer reads from it. Its one owner calls `open` once, and `aclose` in any case.

    When the feeder should be left, the source is interrupted (see `Source.interrupt`).

    Args:
        holder: The feeder.
        digest: The content.
        context: The mirror's context.
        lease: Is told which bytes the feeder has. If it is superseded, the feeder is left.
        path: The path of the content at the feeder.
        offset: The first byte that this host reads.
        patience: Seconds without a byte after which the feeder is left, although it is not to blame.
        checks_rate: Whether the feeder is left if it is slow. If several feeders are slow, this host itself may be.

    Attributes:
        chain: The ids of the feeder, of the host that it reads from, and so on, as far as it says them.
        waited: Seconds since the last byte arrived, as far as this host was ready to read.
    """

    def __init__(
        self,
        holder: Holder,
        digest: Digest,
        context: Context,
        lease: TransferLease,
        *,
        path: str,
        offset: int,
        patience: float,
        checks_rate: bool,
    ) -> None:
        self.chain: tuple[str, ...] = (holder.peer.id,)
        self.waited = 0.0
        self._holder = holder
        self._digest = digest
        self._path = path
        self._context = context
        self._lease = lease
        self._offset = offset
        self._patience = patience
        self._checks_rate = checks_rate
        self._source: Source | None = None
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._left: asyncio.Future[PeerUnavailable] = self._loop.create_future()
        self._unanswered = self._withheld = 0
        self._samples = deque[_Sample]()
        self._tasks = Tasks(context.log)

    async def open(self, opening: Coroutine[Any, Any, Source]) -> Source:
        """Wait until the feeder has sent the first bytes.

        Args:
            opening: Opens the source. Cancelled if the feeder should be left before.

        Raises:
            PeerUnavailable: The feeder should be left.
        """
        self._tasks.start(self._watch())
        if self._lease.may_be_superseded:
            self._tasks.start(self._follow_lease())
        task = asyncio.create_task(opening)
        try:
            waiting: list[asyncio.Future[Any]] = [task, self._left]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _abandon(task)
            raise
        if not task.done():
            await _abandon(task)
            raise self._left.result()
        self._source, self.waited = task.result(), 0.0
        source = self._source
        self._left.add_done_callback(lambda left: source.interrupt(left.result()))
        if source.in_flight is not None:
            self._report(source.in_flight, is_complete=False)
        return source

    async def explain(self, error: PeerUnavailable) -> PeerUnavailable:
        """Ask the feeder why its response broke off: its runtime may have left, which is nobody's fault.

        Args:
            error: Why reading failed.

        Returns:
            The error with its true reason.
        """
        if error.reason != FailureReason.BROKEN:
            return error
        try:
            head = await self._ask()
        except PeerUnavailable as no_answer:
            return PeerUnavailable(f"{error}; now {no_answer}", FailureReason.UNREACHABLE)
        return self._starving() if head.status == 404 else error

    async def aclose(self) -> None:
        """Stop watching. Idempotent."""
        self._tasks.cancel()
        await self._tasks.drain(self._context.limits.stop_timeout)

    async def _follow_lease(self) -> None:
        await self._lease.superseded()
        self._leave(Superseded(f"the router has a better holder than {self._holder.peer.id} now"))

    async def _watch(self) -> None:
        delay = self._context.limits.hedge_delay
        pause, next_question = delay / _CHECKS_PER_DELAY, self._started + _BUSY_INTERVAL * delay
        before, was_silent, questioning = self._sample(), False, 0.0
        while not self._left.done():
            await asyncio.sleep(pause)
            now = self._sample()
            if now.received > before.received:
                self.waited, self._unanswered, self._withheld = 0.0, 0, 0
            else:  # the time for which this host was suspended does not count
                self.waited += min(max(0.0, now.waited - before.waited), 2 * pause + questioning)
            is_silent, questioning = self.waited >= delay, 0.0
            if self.waited >= self._patience:
                self._leave(self._error("has waited for too long itself", FailureReason.WAITING))
            elif now.time >= next_question or (is_silent and not was_silent):
                await self._question()
                questioning = self._loop.time() - now.time
                next_question = self._loop.time() + delay * (_SILENT_INTERVAL if is_silent else _BUSY_INTERVAL)
            before, was_silent = now, is_silent

    async def _question(self) -> None:
        """Ask the feeder what it has, and leave it if it should be left."""
        before = self._sample().received
        try:
            head, problem = await self._ask(), None
        except PeerUnavailable as error:
            head, problem = None, error
        is_silent = self.waited >= self._context.limits.hedge_delay and self._sample().received == before
        if head is None or problem is not None:
            self._unanswered += is_silent
            if self._unanswered >= _MAX_UNANSWERED:
                was_reached = problem is None or problem.reason != FailureReason.UNREACHABLE
                reason = FailureReason.SILENT if was_reached else FailureReason.UNREACHABLE
                self._leave(self._error(f"sends nothing, and does not answer: {problem}", reason))
            return
        self._unanswered = 0
        if head.status == 404 and is_silent:
            self._leave(self._starving())
        if head.status == 200:  # with another status, it lives, but can't say what it has
            self._take(head, is_silent=is_silent)

    def _take(self, head: ResponseHead, *, is_silent: bool) -> None:
        """Note what the feeder says that it has. Leave it if it has more than it sends, or is fed by this host."""
        try:
            in_flight = read_in_flight(self._holder.peer, head, self._context.identity)
        except PeerUnavailable as error:
            self._leave(error)
            return
        is_complete = in_flight is None
        if in_flight is None:
            size = self._source.span.size if self._source is not None else self._holder.size
            in_flight = InFlight(size or self._offset + 1, size, (self._holder.peer.id,))
        self.chain = in_flight.path or self.chain
        if self._source is not None and self._source.in_flight is not None:
            self._source.in_flight = in_flight
            self._report(in_flight, is_complete=is_complete)
        has_more = in_flight.available > self._sample().received
        self._withheld = self._withheld + 1 if is_silent and has_more else 0
        if self._withheld >= _MAX_WITHHELD:
            self._leave(self._error(f"has {in_flight.available} bytes, but sends none", FailureReason.SLOW))
        elif self._checks_rate:
            self._check_rate(in_flight.available)

    def _check_rate(self, available: int) -> None:
        """Leave the feeder if it receives much more than it sends to this host."""
        now = self._sample()._replace(available=available)
        self._samples.append(now)
        window = self._context.limits.rate_window
        while len(self._samples) > 1 and self._samples[1].time <= now.time - window:
            self._samples.popleft()
        since = self._samples[0]
        if now.time - since.time < window or now.waited - since.waited < _WAITING_SHARE * (now.time - since.time):
            return
        sent, got = now.received - since.received, available - since.available
        if got > _SLOWEST_SHARE * sent and available - now.received > _LEAST_BACKLOG:
            self._leave(self._error(f"sends {sent} bytes while it receives {got}", FailureReason.SLOW))

    async def _ask(self) -> ResponseHead:
        """Ask the feeder what it has. Raises PeerUnavailable."""
        context, peer = self._context, self._holder.peer
        headers, timeout = in_flight_headers(context.identity), context.limits.lookup_timeout
        head = await context.client.head(peer, key_path(self._digest), timeout=timeout, headers=headers)
        if head.status != 404:
            return head
        try:  # its router may have no keys, so the door is asked for the content itself
            return await context.client.head(peer, self._path, timeout=timeout, headers=headers)
        except PeerUnavailable:
            return replace(head, status=503)  # it lives, but can't say what it has

    def _sample(self) -> _Sample:
        now, source = self._loop.time(), self._source
        progress = source.progress() if source is not None else None
        count, waited = progress or (0, now - self._started)
        return _Sample(now, (source.span.start if source is not None else self._offset) + count, waited, 0)

    def _report(self, in_flight: InFlight, *, is_complete: bool) -> None:
        holder = Holder(self._holder.peer, is_complete, in_flight.available, in_flight.size or self._holder.size)
        self._lease.use(holder)

    def _starving(self) -> PeerUnavailable:
        return self._error("does not receive the content any more", FailureReason.STARVING)

    def _error(self, problem: str, reason: FailureReason) -> PeerUnavailable:
        return PeerUnavailable(f"peer {self._holder.peer.id} {problem}", reason)

    def _leave(self, error: PeerUnavailable) -> None:
        if not self._left.done():
            self._left.set_result(error)


async def _abandon(opening: asyncio.Task[Source]) -> None:
    """Cancel `opening`, and close the source that it opens nevertheless."""
    opening.cancel()
    await asyncio.wait([opening])
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().aclose()
