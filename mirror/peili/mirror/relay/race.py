"""Races holders: asks one, and asks more of them if it hesitates or fails. The first source that opens wins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias

from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.relay.scores import HEALTHY, MUCH_FASTER, RESTING, UNPROVEN, HolderScores
from peili.mirror.relay.source import Source
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.tasks import is_own_failure

_MAX_AT_ONCE = 16
"""The number of holders that are asked at the same time."""
_MAX_CANDIDATES = 32
"""The number of holders that take part in one race."""
_LAST_RESORT = 4
"""After this many times ``hedge_delay``, resting holders are asked even if others may still answer."""
_PREFERRED = -1
"""The rank of the preferred holder."""

Open: TypeAlias = Callable[[Holder], Coroutine[Any, Any, Source]]
"""Opens a source at a holder. Raises PeerUnavailable."""
Lookup: TypeAlias = Callable[[], AsyncGenerator[Holder, None]]


class NotFaster(PeerUnavailable):
    """The peer sent what it was asked for, but not much faster than the current source. That is not a failure."""


@dataclass(frozen=True, slots=True)
class RaceOptions:
    """How a race is run.

    Attributes:
        on_failure: Called for each holder that fails, with its error.
        on_hesitation: Called for each holder that is still silent after much more time than the winner took.
        delay: Seconds without a winner after which more holders are asked.
        hedge_delay: ``limits.hedge_delay``. No hesitation is shorter, and resting holders are asked after four times
            this time.
        log: For errors that are bugs.
        is_trial: Whether a source is already being read, and the race looks for a faster one. Then resting holders are
            not asked, and more holders are asked at the same time.
    """

    on_failure: Callable[[Peer, PeerUnavailable], None]
    on_hesitation: Callable[[Peer], None]
    delay: float
    hedge_delay: float
    log: logging.Logger
    is_trial: bool = False


class Candidates:
    """The holders that a race may ask: those that the router named, and those that its lookup finds later.

    Its one owner calls `aclose`.

    Args:
        holders: The named holders, best first.
        lookup: Finds further holders.
        scores: In which order holders are asked.
        log: For a lookup that fails.
        preferred: This peer is asked first, whatever its score.
        is_usable: Returns whether to ask the peer with this id at all.
        is_doubted: Returns whether the peer with this id ranks with the resting ones.
        timeout: Seconds that the lookup may take for each holder.
    """

    def __init__(
        self,
        holders: Collection[Holder],
        lookup: Lookup,
        scores: HolderScores,
        log: logging.Logger,
        *,
        preferred: Peer | None = None,
        is_usable: Callable[[str], bool] = lambda _: True,
        is_doubted: Callable[[str], bool] = lambda _: False,
        timeout: float,
    ) -> None:
        self._waiting = list(holders)
        self._known = {holder.peer.id for holder in holders}
        self._lookup = lookup
        self._found: AsyncGenerator[Holder, None] | None = None
        self._scores = scores
        self._log = log
        self._preferred = preferred.id if preferred is not None else None
        self._is_usable = is_usable
        self._is_doubted = is_doubted
        self._timeout = timeout

    def __len__(self) -> int:
        """Return how many holders wait to be asked."""
        return len(self._waiting)

    def take(self, max_rank: int) -> Holder | None:
        """Remove and return the best holder whose rank (see `HolderScores.rank`) is at most `max_rank`, or None."""
        self._waiting = [holder for holder in self._waiting if self._is_usable(holder.peer.id)]
        ranks = {holder.peer.id: self._rank(holder.peer.id) for holder in self._waiting}
        allowed = [holder for holder in self._waiting if ranks[holder.peer.id] <= max_rank]
        if not allowed:
            return None

        def order(holder: Holder) -> tuple[int, bool, bool, int]:
            peer_id, rank = holder.peer.id, ranks[holder.peer.id]
            successes = 0 if rank == HEALTHY else self._scores.successes(peer_id)
            return rank, self._is_doubted(peer_id), self._scores.is_slow(peer_id), -successes

        best = min(allowed, key=order)  # of equal ones, the one that the router named first
        self._waiting.remove(best)
        return best

    async def find_more(self) -> bool:
        """Wait until the lookup finds one more holder. Only one task may call it.

        Returns:
            Whether it found one. If not, do not call it again.
        """
        try:
            if self._found is None:
                self._found = self._lookup()
            while len(self._known) < _MAX_CANDIDATES:
                async with Deadline(self._timeout):
                    holder = await anext(self._found)
                if holder.complete and holder.peer.id not in self._known:
                    self._known.add(holder.peer.id)
                    self._waiting.append(holder)
                    return True
        except StopAsyncIteration:
            pass
        except BaseException as error:  # from the router; the holders found so far are good
            if not is_own_failure(error):
                raise
            self._log.info("the router's lookup found no further holders: %r", error)
        return False

    async def aclose(self) -> None:
        """End the lookup. Takes at most `timeout` seconds, and does not raise its errors. Idempotent."""
        found, self._found = self._found, None
        if found is None:
            return
        try:
            async with Deadline(self._timeout):
                await found.aclose()
        except BaseException as error:  # from the router; it does not affect the winner
            if not is_own_failure(error):
                raise
            self._log.info("the router's lookup of further holders did not close: %r", error)

    def _rank(self, peer_id: str) -> int:
        if peer_id == self._preferred:
            return _PREFERRED
        return RESTING if self._is_doubted(peer_id) else self._scores.rank(peer_id)


async def race(candidates: Candidates, open_source: Open, options: RaceOptions) -> Source | None:
    """Open a source at the first holder that delivers.

    One holder is asked first, and another one for each that fails. Each time that ``options.delay`` passes without a
    winner, twice as many holders are asked as the time before; in a trial, four times as many. An error that is not
    PeerUnavailable is a bug. It is logged, and the other attempts continue. Sources that open after the winner are
    closed.

    Args:
        candidates: The holders to ask. The race closes them.
        open_source: Opens a source at one holder.
        options: How the race is run.

    Returns:
        The source that won; None if all holders failed.
    """
    racing = _Race(candidates, open_source, options)
    try:
        return await racing.run()
    finally:
        await racing.close()


class _Race:
    """The state of one race."""

    def __init__(self, candidates: Candidates, open_source: Open, options: RaceOptions) -> None:
        self._candidates = candidates
        self._open_source = open_source
        self._options = options
        self._clock = asyncio.get_running_loop().time
        self._started = self._clock()
        self._attempts: dict[asyncio.Task[Source], tuple[Holder, float]] = {}  # with the time when each started
        self._lookup: asyncio.Task[bool] | None = None
        self._is_lookup_finished = False
        self._has_hedged = False
        self._batch = 2 if options.is_trial else 1  # how many holders are asked at a time
        self._due = self._batch  # how many of them are still to be asked
        self._winner: Source | None = None

    async def run(self) -> Source | None:
        """Return the winner, or None. Call `close` afterwards."""
        deadline = self._started + self._options.delay
        while True:
            self._start_attempts()
            if not (pending := self._pending):
                return None
            timeout = max(0.0, deadline - self._clock())
            done, _ = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for attempt in [attempt for attempt in self._attempts if attempt in done]:
                if self._has_won(attempt):
                    return attempt.result()
            if self._lookup in done:
                self._is_lookup_finished, self._lookup = not self._lookup.result(), None
            if self._clock() >= deadline:
                self._has_hedged = True
                self._due = self._batch = min((4 if self._options.is_trial else 2) * self._batch, _MAX_AT_ONCE)
                deadline = self._clock() + self._options.delay

    async def close(self) -> None:
        """Cancel the other attempts. Close the sources that they open nevertheless."""
        late, pending = list(self._attempts), self._pending
        for task in pending:
            task.cancel()
        try:
            await asyncio.gather(*pending, return_exceptions=True)
            await self._candidates.aclose()
        except asyncio.CancelledError:
            if self._winner is not None:
                await self._winner.aclose()  # the cancelled caller does not receive it
            raise
        finally:  # a cancelled gather also waits for its tasks, but does not return their results
            for task in late:
                if task.done() and not task.cancelled() and task.exception() is None:
                    await task.result().aclose()

    @property
    def _pending(self) -> list[asyncio.Task[Any]]:
        return [*self._attempts, *([self._lookup] if self._lookup is not None else [])]

    def _start_attempts(self) -> None:
        """Ask as many holders as are due. If there are too few, let the lookup find more."""
        while (
            self._due
            and len(self._attempts) < _MAX_AT_ONCE
            and (holder := self._candidates.take(self._max_rank)) is not None
        ):
            self._attempts[asyncio.create_task(self._open_source(holder))] = (holder, self._clock())
            self._due -= 1
        # If all named holders fail soon, the race ends and the caller asks the router again: `Router.acquire` may know
        # more than `Router.lookup`.
        needs_more = self._has_hedged or self._options.is_trial or (not self._attempts and bool(self._candidates))
        if self._due and needs_more and not self._is_lookup_finished and self._lookup is None:
            self._lookup = asyncio.create_task(self._candidates.find_more())

    @property
    def _max_rank(self) -> int:
        """The highest rank of the holders that may be asked now."""
        has_looked = self._is_lookup_finished or self._has_hedged
        is_last_resort = self._clock() - self._started >= _LAST_RESORT * self._options.hedge_delay
        if not self._options.is_trial and (is_last_resort or (has_looked and not self._attempts)):
            return RESTING
        return UNPROVEN if has_looked else HEALTHY

    def _has_won(self, attempt: asyncio.Task[Source]) -> bool:
        holder, started = self._attempts.pop(attempt)
        try:
            self._winner = attempt.result()
        except NotFaster as error:
            self._options.log.debug("the current holder stays: %s", error)
            return False
        except PeerUnavailable as error:
            self._options.on_failure(holder.peer, error)
        except Exception as error:
            peer_id = holder.peer.id
            self._options.log.exception("fetching from peer %s failed, which is a bug", peer_id)
            failure = PeerUnavailable(f"fetching from peer {peer_id} failed: {error!r}", FailureReason.BROKEN)
            self._options.on_failure(holder.peer, failure)
        else:
            self._report_hesitation(self._clock() - started)
            return True
        self._due += 1
        return False

    def _report_hesitation(self, winner_seconds: float) -> None:
        """Report the holders that were asked much longer ago than the winner needed."""
        latest_start = self._clock() - max(self._options.hedge_delay, MUCH_FASTER * winner_seconds)
        for attempt, (holder, started) in self._attempts.items():
            if started <= latest_start and not attempt.done():
                self._options.on_hesitation(holder.peer)
