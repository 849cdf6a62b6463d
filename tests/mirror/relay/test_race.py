"""The start of a transfer as a function: nothing stays open, whatever the timing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable, Sequence

import pytest
from tests.mirror.relay.pulling import until
from typing_extensions import override

from peili.mirror import Holder, Limits, Peer, PeerUnavailable, RouterUnavailable
from peili.mirror.errors import FailureReason
from peili.mirror.relay.race import Candidates, NotFaster, RaceOptions, race
from peili.mirror.relay.reputation import HolderScores
from peili.mirror.relay.source import Source

pytestmark = pytest.mark.anyio


class Openings:
    """Opens sources that do nothing, and counts those that are open or being opened."""

    def __init__(self) -> None:
        self.opening: list[str] = []
        self.told_to_stop: list[str] = []
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.failed: list[str] = []
        self.hesitated: list[str] = []
        self.doubted: set[str] = set()
        self.health = HolderScores(Limits())
        self.stubborn = asyncio.Event()

    @property
    def left(self) -> int:
        return len(self.opening) + len(self.opened) - len(self.closed)

    def note(self, peer: Peer, _: PeerUnavailable) -> None:
        self.failed.append(peer.id)

    async def open(self, holder: Holder) -> Source:
        name = holder.peer.id
        self.opening.append(name)
        try:
            await self._answer(name)
        except asyncio.CancelledError:
            self.told_to_stop.append(name)
            if name.startswith("stubborn"):  # opens all the same, and takes its time
                await self.stubborn.wait()
            elif not name.startswith("late"):  # which had just opened
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
            case "silent" | "stubborn" | "late":
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
            _holders(names), lambda: _lookup(later), self.health, log, is_doubted=self.doubted.__contains__, timeout=30
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
    """Has nothing to read; notes that it was closed."""

    def __init__(self, peer: Peer, closed: list[str]) -> None:
        self.peer = peer
        self._closed = closed

    @override
    async def aclose(self) -> None:
        self._closed.append(self.peer.id)


async def test_nobody_wins_where_there_is_nobody() -> None:
    assert await Openings().race() is None


async def test_all_that_fail_are_named() -> None:
    openings = Openings()
    assert await openings.race("refuses-1", "refuses-2") is None
    assert openings.failed == ["refuses-1", "refuses-2"]


async def test_a_refusal_is_not_waited_out() -> None:
    openings = Openings()
    async with asyncio.timeout(20):
        winner = await openings.race("refuses", "good", delay=60)
    assert winner is not None
    assert winner.peer.id == "good"


@pytest.mark.parametrize("names", [("breaks", "good"), ("silent", "breaks", "good")])
async def test_one_that_fails_unexpectedly_does_not_keep_another_from_winning(
    names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    openings = Openings()
    winner = await openings.race(*names)
    assert winner is not None
    assert winner.peer.id == "good"
    assert openings.failed == ["breaks"]
    [said] = caplog.records
    assert said.getMessage() == "fetching from peer breaks failed, which is a bug"
    assert said.exc_info is not None
    assert isinstance(said.exc_info[1], LookupError)
    await winner.aclose()
    assert openings.left == 0


async def test_all_that_fail_unexpectedly_are_named_too() -> None:
    openings = Openings()
    assert await openings.race("breaks-1", "refuses", "breaks-2") is None
    assert openings.failed == ["breaks-1", "refuses", "breaks-2"]


async def test_a_cancellation_ends_the_race() -> None:
    openings = Openings()
    with pytest.raises(asyncio.CancelledError):
        await openings.race("cancelled", "good", delay=60)
    assert not openings.failed


async def test_only_the_winner_stays_open() -> None:
    openings = Openings()
    openings.stubborn.set()
    winner = await openings.race("silent", "stubborn", "slow", "good")
    assert winner is not None
    assert winner.peer.id in {"slow", "good"}
    assert openings.left == 1
    await winner.aclose()
    assert openings.left == 0


async def test_nothing_stays_open_when_it_is_cancelled_while_waiting() -> None:
    openings = Openings()
    racing = asyncio.create_task(openings.race("silent", "late"))
    await until(lambda: len(openings.opening) == 2)
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert openings.closed == openings.opened == ["late"]
    assert openings.left == 0


async def test_nothing_stays_open_when_it_is_cancelled_while_the_late_ones_are_closed() -> None:
    openings = Openings()
    racing = asyncio.create_task(openings.race("stubborn", "late", "good"))
    await until(lambda: len(openings.told_to_stop) == 2)
    assert openings.opening == ["stubborn"]
    assert not racing.done()  # it has a winner, and waits for the stubborn one
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert set(openings.closed) == set(openings.opened) == {"late", "good"}
    assert openings.left == 0


async def test_one_that_opens_after_it_was_told_to_stop_is_closed() -> None:
    openings = Openings()
    racing = asyncio.create_task(openings.race("stubborn", "late", "good"))
    await until(lambda: len(openings.told_to_stop) == 2)
    openings.stubborn.set()
    winner = await racing
    assert winner is not None
    assert set(openings.closed) == {"stubborn", "late"}
    await winner.aclose()
    assert openings.left == 0


async def test_while_the_first_one_hesitates_others_are_looked_for() -> None:
    openings = Openings()
    winner = await openings.race("silent", later=["silent-2", "good"])
    assert winner is not None
    assert winner.peer.id == "good"
    assert openings.opened == ["good"]


async def test_where_all_have_failed_the_router_is_asked_and_not_its_lookup() -> None:
    openings = Openings()
    assert await openings.race("refuses", later=["good"], delay=60) is None
    assert openings.opened == []


async def test_one_that_rests_is_asked_only_where_there_is_nobody_else() -> None:
    openings = Openings()
    openings.health.record_failure("rests", FailureReason.SILENT)
    winner = await openings.race("rests", later=["good"], delay=60)
    assert winner is not None
    assert winner.peer.id == "good"
    assert openings.opened == ["good"]
    winner = await openings.race("rests", delay=60)
    assert winner is not None
    assert winner.peer.id == "rests"


async def test_of_those_that_rest_the_one_that_has_succeeded_most_comes_first() -> None:
    openings = Openings()
    for name in ("one", "two"):
        openings.health.record_failure(name, FailureReason.SILENT)
    openings.health.record_success("two", time.monotonic())
    openings.health.record_failure("two", FailureReason.SILENT)
    winner = await openings.race("one", "two", delay=60)
    assert winner is not None
    assert winner.peer.id == "two"


async def test_soon_after_a_failure_one_that_is_proven_is_waited_for() -> None:
    openings = Openings()
    openings.health.record_success("proven", time.monotonic())
    openings.health.record_failure("somebody", FailureReason.SILENT)
    winner = await openings.race("new", later=["new-2", "proven"], delay=60)
    assert winner is not None
    assert winner.peer.id == "proven"
    winner = await openings.race("new", later=["new-2"], delay=60)
    assert winner is not None
    assert winner.peer.id == "new"


async def test_one_that_is_doubted_comes_with_those_that_rest() -> None:
    openings = Openings()
    openings.doubted.add("liar")
    winner = await openings.race("liar", later=["good"], delay=60)
    assert winner is not None
    assert winner.peer.id == "good"


async def test_losing_a_race_is_no_failure() -> None:
    openings = Openings()
    winner = await openings.race("silent", "good", hedge_delay=60)
    assert winner is not None
    assert (openings.failed, openings.hesitated) == ([], [])


async def test_one_that_was_waited_for_for_long_while_another_was_quick_has_hesitated() -> None:
    openings = Openings()
    winner = await openings.race("silent", "good")
    assert winner is not None
    assert openings.failed == []
    assert openings.hesitated == ["silent"]


async def test_beside_one_that_sends_nobody_is_asked_who_rests() -> None:
    openings = Openings()
    openings.health.record_failure("rests", FailureReason.SILENT)
    assert await openings.race("rests", "refuses", is_trial=True) is None
    assert openings.failed == ["refuses"]


async def test_one_that_is_no_better_is_not_blamed() -> None:
    openings = Openings()
    assert await openings.race("equal", is_trial=True) is None
    assert (openings.failed, openings.hesitated) == ([], [])


@pytest.mark.parametrize("how", ["raises", "hangs"])
async def test_a_lookup_that_does_not_end_well_is_left(how: str) -> None:
    """Else it would cost the prize that was won meanwhile, and whoever gave it would be left open."""

    async def lookup() -> AsyncGenerator[Holder]:
        try:
            yield Holder(Peer("a", ()), complete=True)
        finally:
            if how == "raises":
                raise LookupError("a stranger's bug")
            await asyncio.get_running_loop().create_future()

    candidates = Candidates((), lookup, HolderScores(Limits()), logging.getLogger(__name__), timeout=0.2)
    assert await candidates.find_more()
    async with asyncio.timeout(60):
        await candidates.aclose()


@pytest.mark.parametrize("how", ["raises", "raises a stray cancellation", "raises as it is closed"])
async def test_a_lookup_that_raises_leaves_those_in_hand(how: str) -> None:
    openings = Openings()
    winner = await openings.race("slow", later=[how], delay=0.01)
    assert winner is not None
    assert winner.peer.id == "slow"
