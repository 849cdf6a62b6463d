"""Races of holders: the first one wins, and no other source stays open, whatever the timing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable, Sequence

import pytest
from tests.support.waiting import WAIT, until
from typing_extensions import override

from peili.mirror import Holder, Limits, Peer, PeerUnavailable, RouterUnavailable
from peili.mirror.errors import FailureReason
from peili.mirror.relay.race import Candidates, NotFaster, RaceOptions, race
from peili.mirror.relay.scores import HolderScores
from peili.mirror.relay.source import Source

pytestmark = pytest.mark.anyio


class FakeHolders:
    """Open sources that do nothing, and count them. The name of a peer decides how it behaves."""

    def __init__(self) -> None:
        self.opening: list[str] = []
        self.cancelled: list[str] = []
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.failed: list[str] = []
        self.hesitated: list[str] = []
        self.doubted: set[str] = set()
        self.scores = HolderScores(Limits())
        self.may_end = asyncio.Event()

    @property
    def open_count(self) -> int:
        return len(self.opening) + len(self.opened) - len(self.closed)

    def note(self, peer: Peer, _: PeerUnavailable) -> None:
        self.failed.append(peer.id)

    async def open(self, holder: Holder) -> Source:
        name = holder.peer.id
        self.opening.append(name)
        try:
            await self._answer(name)
        except asyncio.CancelledError:
            self.cancelled.append(name)
            if name.startswith("uncancellable"):  # opens although it was cancelled
                await self.may_end.wait()
            elif not name.startswith("late"):  # a late one was just opened
                raise
        finally:
            self.opening.remove(name)
        self.opened.append(name)
        return _Closing(holder.peer, self.closed)

    async def _answer(self, name: str) -> None:
        match name.partition("-")[0]:
            case "refuses":
                raise PeerUnavailable("no")
            case "breaks":
                raise LookupError("a bug")
            case "cancelled":
                raise asyncio.CancelledError
            case "equal":
                raise NotFaster("as fast")
            case "silent" | "uncancellable" | "late":
                await asyncio.get_running_loop().create_future()
            case "slow":
                await asyncio.sleep(0.05)
            case _:
                pass

    async def race(
        self,
        *names: str,
        delay: float = 0.01,
        hedge_delay: float | None = None,
        later: Sequence[str] = (),
        is_trial: bool = False,
    ) -> Source | None:
        log = logging.getLogger(__name__)
        candidates = Candidates(
            _holders(names), lambda: _lookup(later), self.scores, log, is_doubted=self.doubted.__contains__, timeout=30
        )
        options = RaceOptions(
            on_failure=self.note,
            on_hesitation=lambda peer: self.hesitated.append(peer.id),
            delay=delay,
            hedge_delay=hedge_delay or delay,
            log=log,
            is_trial=is_trial,
        )
        return await race(candidates, self.open, options)


def _holders(names: Iterable[str]) -> list[Holder]:
    return [Holder(Peer(name, ()), complete=True) for name in names]


async def _lookup(names: Iterable[str]) -> AsyncGenerator[Holder]:
    for holder in _holders(names):
        match holder.peer.id:
            case "raises":
                raise RouterUnavailable("no router")
            case "raises a stray cancellation":
                raise asyncio.CancelledError
            case "raises as it is closed":
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    raise LookupError("a bug")
            case _:
                yield holder


class _Closing(Source):
    """Has nothing to read; records that it was closed."""

    def __init__(self, peer: Peer, closed: list[str]) -> None:
        self.peer = peer
        self._closed = closed

    @override
    async def aclose(self) -> None:
        self._closed.append(self.peer.id)


async def test_a_race_without_holders_has_no_winner() -> None:
    assert await FakeHolders().race() is None


async def test_all_failures_are_reported() -> None:
    holders = FakeHolders()
    assert await holders.race("refuses-1", "refuses-2") is None
    assert holders.failed == ["refuses-1", "refuses-2"]


async def test_a_refusal_starts_the_next_attempt_at_once() -> None:
    holders = FakeHolders()
    async with asyncio.timeout(60):
        winner = await holders.race("refuses", "good", delay=600)
    assert winner is not None
    assert winner.peer.id == "good"


@pytest.mark.parametrize("names", [("breaks", "good"), ("silent", "breaks", "good")])
async def test_an_unexpected_error_does_not_keep_another_holder_from_winning(
    names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    holders = FakeHolders()
    winner = await holders.race(*names)
    assert winner is not None
    assert winner.peer.id == "good"
    assert holders.failed == ["breaks"]
    [record] = caplog.records
    assert record.getMessage() == "fetching from peer breaks failed, which is a bug"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)
    await winner.aclose()
    assert holders.open_count == 0


async def test_all_unexpected_errors_are_reported() -> None:
    holders = FakeHolders()
    assert await holders.race("breaks-1", "refuses", "breaks-2") is None
    assert holders.failed == ["breaks-1", "refuses", "breaks-2"]


async def test_a_cancelled_attempt_ends_the_race() -> None:
    holders = FakeHolders()
    with pytest.raises(asyncio.CancelledError):
        await holders.race("cancelled", "good", delay=60)
    assert not holders.failed


async def test_only_the_winner_stays_open() -> None:
    holders = FakeHolders()
    holders.may_end.set()
    winner = await holders.race("silent", "uncancellable", "slow", "good")
    assert winner is not None
    assert winner.peer.id in {"slow", "good"}
    assert holders.open_count == 1
    await winner.aclose()
    assert holders.open_count == 0


async def test_nothing_stays_open_if_the_race_is_cancelled_while_it_waits() -> None:
    holders = FakeHolders()
    racing = asyncio.create_task(holders.race("silent", "late"))
    await until(lambda: len(holders.opening) == 2)
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert holders.closed == holders.opened == ["late"]
    assert holders.open_count == 0


async def test_nothing_stays_open_if_the_race_is_cancelled_while_it_closes_late_sources() -> None:
    holders = FakeHolders()
    racing = asyncio.create_task(holders.race("uncancellable", "late", "good"))
    await until(lambda: len(holders.cancelled) == 2)
    assert holders.opening == ["uncancellable"]
    assert not racing.done()  # it has a winner, and waits for the uncancellable one
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert set(holders.closed) == set(holders.opened) == {"late", "good"}
    assert holders.open_count == 0


async def test_a_source_that_opens_after_its_cancellation_is_closed() -> None:
    holders = FakeHolders()
    racing = asyncio.create_task(holders.race("uncancellable", "late", "good"))
    await until(lambda: len(holders.cancelled) == 2)
    holders.may_end.set()
    winner = await racing
    assert winner is not None
    assert set(holders.closed) == {"uncancellable", "late"}
    await winner.aclose()
    assert holders.open_count == 0


async def test_more_holders_are_looked_for_while_the_first_one_hesitates() -> None:
    holders = FakeHolders()
    winner = await holders.race("silent", later=["silent-2", "good"])
    assert winner is not None
    assert winner.peer.id == "good"
    assert holders.opened == ["good"]


async def test_the_lookup_is_not_used_if_all_named_holders_failed() -> None:
    holders = FakeHolders()
    assert await holders.race("refuses", later=["good"], delay=60) is None
    assert holders.opened == []


async def test_a_resting_holder_is_asked_only_if_there_is_no_other() -> None:
    holders = FakeHolders()
    holders.scores.record_failure("rests", FailureReason.SILENT)
    winner = await holders.race("rests", later=["good"], delay=60)
    assert winner is not None
    assert winner.peer.id == "good"
    assert holders.opened == ["good"]
    winner = await holders.race("rests", delay=60)
    assert winner is not None
    assert winner.peer.id == "rests"


async def test_the_most_successful_resting_holder_comes_first() -> None:
    holders = FakeHolders()
    for name in ("one", "two"):
        holders.scores.record_failure(name, FailureReason.SILENT)
    holders.scores.record_success("two", time.monotonic())
    holders.scores.record_failure("two", FailureReason.SILENT)
    winner = await holders.race("one", "two", delay=60)
    assert winner is not None
    assert winner.peer.id == "two"


async def test_a_proven_holder_is_preferred_soon_after_a_failure() -> None:
    holders = FakeHolders()
    holders.scores.record_success("proven", time.monotonic())
    holders.scores.record_failure("somebody", FailureReason.SILENT)
    winner = await holders.race("new", later=["new-2", "proven"], delay=60)
    assert winner is not None
    assert winner.peer.id == "proven"
    winner = await holders.race("new", later=["new-2"], delay=60)
    assert winner is not None
    assert winner.peer.id == "new"


async def test_a_doubted_holder_ranks_with_the_resting_ones() -> None:
    holders = FakeHolders()
    holders.doubted.add("doubted")
    winner = await holders.race("doubted", later=["good"], delay=60)
    assert winner is not None
    assert winner.peer.id == "good"


async def test_losing_a_race_is_not_a_failure() -> None:
    holders = FakeHolders()
    winner = await holders.race("silent", "good", hedge_delay=60)
    assert winner is not None
    assert (holders.failed, holders.hesitated) == ([], [])


async def test_a_holder_that_is_silent_much_longer_than_the_winner_took_has_hesitated() -> None:
    async with asyncio.timeout(WAIT):
        while True:  # on a busy machine, the winner itself may take long
            holders = FakeHolders()
            winner = await holders.race("silent", "good")
            assert winner is not None
            assert holders.failed == []
            if holders.hesitated:
                break
    assert holders.hesitated == ["silent"]


async def test_a_trial_asks_no_resting_holder() -> None:
    holders = FakeHolders()
    holders.scores.record_failure("rests", FailureReason.SILENT)
    assert await holders.race("rests", "refuses", is_trial=True) is None
    assert holders.failed == ["refuses"]


async def test_a_holder_that_is_not_faster_is_not_blamed() -> None:
    holders = FakeHolders()
    assert await holders.race("equal", is_trial=True) is None
    assert (holders.failed, holders.hesitated) == ([], [])


@pytest.mark.parametrize("how", ["raises", "hangs"])
async def test_a_lookup_that_does_not_close_is_abandoned(how: str) -> None:
    """Otherwise the winner would be lost, and would stay open."""

    async def lookup() -> AsyncGenerator[Holder]:
        try:
            yield Holder(Peer("a", ()), complete=True)
        finally:
            if how == "raises":
                raise LookupError("a bug of a plug-in")
            await asyncio.get_running_loop().create_future()

    candidates = Candidates((), lookup, HolderScores(Limits()), logging.getLogger(__name__), timeout=0.2)
    assert await candidates.find_more()
    async with asyncio.timeout(60):
        await candidates.aclose()


@pytest.mark.parametrize("how", ["raises", "raises a stray cancellation", "raises as it is closed"])
async def test_a_lookup_that_raises_does_not_harm_the_named_holders(how: str) -> None:
    holders = FakeHolders()
    winner = await holders.race("slow", later=[how], delay=0.01)
    assert winner is not None
    assert winner.peer.id == "slow"
