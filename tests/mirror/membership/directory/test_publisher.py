"""What a host tells the homes: when, in which order, and what it repeats."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from tests.support.waiting import until

from peili.mirror import Digest, Have, Key, Limits, Synced
from peili.mirror.membership.directory import publisher
from peili.mirror.membership.directory.homes import HomeSet, choose_homes, slot_of
from peili.mirror.membership.directory.publisher import Publisher, Reply
from peili.mirror.peer_api.directory import MAX_BATCH, Holding, Holdings
from peili.mirror.support.tasks import Tasks

pytestmark = pytest.mark.anyio

KEYS = [Digest.of(str(number).encode()) for number in range(200)]


class Home:
    """What one home was told."""

    def __init__(self) -> None:
        self.messages: list[Holdings] = []
        self.held: dict[str, Holding] = {}
        self.replies: list[Reply] = []  # the next ones, if not ACCEPTED

    def take(self, message: Holdings) -> Reply:
        self.messages.append(message)
        reply = self.replies.pop(0) if self.replies else Reply.ACCEPTED
        if reply is Reply.ACCEPTED:
            if message.sequence == 0:
                self.held.clear()
            self.held.update((each.key, each) for each in message.have)
            for key in message.gone:
                self.held.pop(key, None)
        return reply


class Subject:
    """A publisher, and the homes that it tells."""

    def __init__(self, tasks: Tasks, backoff: float) -> None:
        self.homes: dict[str, Home] = {}
        self.at_once = self.most_at_once = 0
        self.interval = 60.0
        self.awaited: set[Key] = set()
        limits = Limits(backoff_min=backoff, backoff_max=2 * backoff)
        self.publisher = Publisher(
            limits, tasks, self._send, lambda: self.interval, is_awaited=lambda key: key in self.awaited
        )

    async def _send(self, home: str, message: Holdings) -> Reply:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        return self.homes.setdefault(home, Home()).take(message)

    def set_homes(self, *ids: str) -> None:
        self.publisher.set_homes(HomeSet(frozenset(ids)))

    def are_right(self, keys: list[Key], *ids: str) -> bool:
        """Whether each home is synced and holds exactly its share of `keys`."""
        homes = HomeSet(frozenset(ids))
        for home in ids:
            share = {str(key) for key in keys if home in homes.homes_of(slot_of(str(key)))}
            told = self.homes.get(home, Home())
            if set(told.held) != share or not told.messages or not told.messages[-1].is_synced:
                return False
        return True


@asynccontextmanager
async def publishing(backoff: float = 0.01) -> AsyncGenerator[Subject]:
    async with Tasks(logging.getLogger("peili.test")) as tasks:
        yield Subject(tasks, backoff)


def have(*keys: Digest) -> list[Have]:
    return [Have(key, 10) for key in keys]


async def test_nothing_is_sent_before_everything_was_advertised() -> None:
    async with publishing() as subject:
        subject.set_homes("a", "b", "c")
        subject.publisher.advertise(have(*KEYS))
        await asyncio.sleep(0.1)
        assert subject.homes == {}
        subject.publisher.advertise([Synced()])
        await until(lambda: subject.are_right([*KEYS], "a", "b", "c"))
        for home in subject.homes.values():
            [message] = home.messages
            assert (message.sequence, set(message.homes or ()), message.is_synced) == (0, {"a", "b", "c"}, True)


async def test_a_host_without_content_says_so() -> None:
    async with publishing() as subject:
        subject.set_homes("a")
        subject.publisher.advertise([Synced()])
        await until(lambda: subject.are_right([], "a"))


async def test_changes_are_gathered_and_numbered() -> None:
    async with publishing() as subject:
        subject.set_homes("a")
        subject.publisher.advertise([Synced()])
        await until(lambda: subject.are_right([], "a"))
        for key in KEYS:
            subject.publisher.advertise(have(key))
            subject.publisher.advertise(have(key))
        subject.publisher.advertise([Have(KEYS[0], 10, complete=False, available=3)])
        subject.publisher.withdraw([KEYS[1], Digest.of(b"unknown")])
        await until(lambda: subject.are_right([KEYS[0], *KEYS[2:]], "a"))
        home = subject.homes["a"]
        assert [(each.sequence, each.homes) for each in home.messages] == [(0, ("a",)), (1, None)]
        assert home.held[KEYS[0]] == Holding(KEYS[0], 10, 3)


async def test_changes_are_sent_at_once_until_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "_GATHER_TIME", 600.0)
    async with publishing() as subject:
        subject.set_homes("a")
        subject.publisher.advertise([Synced()])
        await until(lambda: subject.are_right([], "a"))
        home = subject.homes["a"]

        async def advertise(key: Digest) -> bool:
            """Advertise, and return whether the home knows it before any time passes."""
            subject.publisher.advertise(have(key))
            for _ in range(20):  # turns of the loop
                await asyncio.sleep(0)
            return key in home.held

        told = [await advertise(key) for key in KEYS[:20]]
        assert told == [True] * 9 + [False] * 11, "the burst of ten messages began with the first one of the session"


async def test_the_growth_of_content_in_flight_waits_for_the_next_message() -> None:
    async with publishing() as subject:
        subject.set_homes("a")
        subject.publisher.advertise([Synced()])
        await until(lambda: subject.are_right([], "a"))
        home = subject.homes["a"]
        subject.publisher.advertise([Have(KEYS[0], 10, complete=False, available=1)])
        await until(lambda: home.held.get(KEYS[0]) == Holding(KEYS[0], 10, 1))
        sent = len(home.messages)
        subject.publisher.advertise([Have(KEYS[0], 10, complete=False, available=2)])
        await asyncio.sleep(0.2)
        assert len(home.messages) == sent
        subject.publisher.advertise(have(KEYS[1]))
        await until(lambda: KEYS[1] in home.held)
        assert (len(home.messages), home.held[KEYS[0]]) == (sent + 1, Holding(KEYS[0], 10, 2))
        subject.publisher.advertise(have(KEYS[0]))
        await until(lambda: home.held[KEYS[0]] == Holding(KEYS[0], 10))


async def test_what_others_wait_for_is_told_at_once_although_growth_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async with publishing() as subject:
        subject.set_homes("a")
        subject.publisher.advertise([Synced()])
        await until(lambda: subject.are_right([], "a"))
        home, (grown, unwanted, wanted) = subject.homes["a"], KEYS[:3]
        subject.publisher.advertise([Have(grown, 10, complete=False, available=1)])
        await until(lambda: home.held.get(grown) == Holding(grown, 10, 1))
        monkeypatch.setattr(publisher, "_GROWTH_INTERVAL", 600.0)
        subject.awaited |= {grown, wanted}
        subject.publisher.advertise([Have(grown, 10, complete=False, available=2)])
        subject.publisher.advertise([Have(unwanted, 10, complete=False, available=0)])
        await asyncio.sleep(0.2)
        assert (home.held[grown], unwanted in home.held) == (Holding(grown, 10, 1), False)
        for available in (0, 1):
            subject.publisher.advertise([Have(wanted, 10, complete=False, available=available)])
            await until(lambda available=available: home.held.get(wanted) == Holding(wanted, 10, available))  # type: ignore[misc]  # bound early
        assert home.held[grown] == Holding(grown, 10, 2)


async def test_many_keys_take_several_messages_and_the_home_is_synced_with_the_last() -> None:
    keys: list[Key] = [Digest.of(str(number).encode()) for number in range(2 * MAX_BATCH + 1)]
    async with publishing() as subject:
        subject.publisher.advertise([*(Have(key) for key in keys), Synced()])
        subject.set_homes("a")
        await until(lambda: subject.are_right(keys, "a"))
        messages = subject.homes["a"].messages
        assert [(len(each.have), each.is_synced) for each in messages] == [(1000, False), (1000, False), (1, True)]


async def test_a_message_that_failed_is_repeated_with_the_same_number() -> None:
    async with publishing() as subject:
        subject.homes["a"] = Home()
        subject.homes["a"].replies = [Reply.FAILED, Reply.FAILED]
        subject.publisher.advertise([*have(*KEYS), Synced()])
        subject.set_homes("a")
        await until(lambda: subject.are_right([*KEYS], "a"))
        assert [each.sequence for each in subject.homes["a"].messages] == [0, 0, 0]
        subject.homes["a"].replies = [Reply.FAILED]
        subject.publisher.withdraw(KEYS[:100])
        await until(lambda: subject.are_right([*KEYS[100:]], "a"))
        assert [each.sequence for each in subject.homes["a"].messages] == [0, 0, 0, 1, 1]


async def test_a_home_that_has_learned_of_this_host_is_told_at_once_although_it_refused_before() -> None:
    async with publishing(backoff=600) as subject:
        subject.homes["a"] = home = Home()
        home.replies = [Reply.FAILED]
        subject.publisher.advertise([*have(*KEYS), Synced()])
        subject.set_homes("a")
        await until(lambda: home.messages)
        subject.publisher.send_now("a")
        await until(lambda: subject.are_right([*KEYS], "a"))


async def test_a_home_that_lost_what_it_knew_is_told_everything_in_a_new_session() -> None:
    async with publishing() as subject:
        subject.publisher.advertise([*have(*KEYS), Synced()])
        subject.set_homes("a", "b", "c")
        await until(lambda: subject.are_right([*KEYS], "a", "b", "c"))
        home = subject.homes["a"]
        home.held.clear()
        home.replies = [Reply.OUT_OF_SEQUENCE]
        subject.publisher.send_now("a")
        subject.publisher.send_now("unknown")
        await until(lambda: subject.are_right([*KEYS], "a", "b", "c"))
        first, heartbeat, again = home.messages
        assert (heartbeat.have, heartbeat.sequence, again.sequence) == ((), 1, 0)
        assert again.session != first.session
        assert again.homes == first.homes


async def test_only_the_slots_that_moved_are_sent_again() -> None:
    everyone = [f"host-{number}" for number in range(10)]
    async with publishing() as subject:
        subject.publisher.advertise([*have(*KEYS), Synced()])
        subject.set_homes(*everyone)
        await until(lambda: subject.are_right([*KEYS], *everyone))
        for count in (9, 10):
            for home in subject.homes.values():
                home.messages.clear()
            if count == 10:
                subject.homes.pop(everyone[9])
            subject.set_homes(*everyone[:count])
            await until(lambda count=count: subject.are_right([*KEYS], *everyone[:count]))  # type: ignore[misc]  # bound early
            others = [subject.homes[each] for each in everyone[:9]]
            moved = sum(len(each.have) + len(each.gone) for home in others for each in home.messages)
            assert 0 < moved < len(KEYS) / 2
            assert all(home.messages[0].homes is not None for home in others), "they are told about the new homes"


async def test_a_home_hears_from_a_host_at_intervals() -> None:
    async with publishing() as subject:
        subject.interval = 0.05
        subject.publisher.advertise([*have(*KEYS), Synced()])
        subject.set_homes("a")
        await until(lambda: len(subject.homes.get("a", Home()).messages) >= 4)
        assert [len(each.have) for each in subject.homes["a"].messages][:4] == [200, 0, 0, 0]
        assert all(each.is_synced for each in subject.homes["a"].messages)


async def test_many_homes_are_told_a_few_at_a_time() -> None:
    homes = choose_homes(f"host-{number}" for number in range(100))
    async with publishing() as subject:
        subject.publisher.advertise([*have(*KEYS), Synced()])
        subject.set_homes(*homes)
        await until(lambda: subject.are_right([*KEYS], *homes))
        assert subject.most_at_once == 8
        kept, *left = homes
        subject.most_at_once = 0
        subject.set_homes(kept)
        await until(lambda: all(subject.homes[each].messages[-1].homes == (kept,) for each in left))
        await until(lambda: subject.are_right([*KEYS], kept))
    assert subject.most_at_once == 8, "also when they are no homes any more"


async def test_a_host_that_is_no_home_any_more_is_told_so_and_forgets_the_keys() -> None:
    async with publishing() as subject:
        subject.publisher.advertise([*have(*KEYS), Synced()])
        subject.set_homes("a", "b", "c")
        await until(lambda: subject.are_right([*KEYS], "a", "b", "c"))
        for _ in range(3):
            subject.set_homes("a", "b")
            left = subject.homes["c"]
            await until(lambda left=left: not left.held)  # type: ignore[misc]  # bound early
            farewell = left.messages[-1]
            assert (farewell.sequence, set(farewell.homes or ()), farewell.is_synced) == (0, {"a", "b"}, False)
            subject.set_homes("a", "b", "c")
            await until(lambda: subject.are_right([*KEYS], "a", "b", "c"))


async def test_a_home_that_failed_is_told_nothing_when_another_one_takes_its_place() -> None:
    async with publishing() as subject:
        subject.homes["a"] = home = Home()
        home.replies = [Reply.FAILED] * 1000
        subject.publisher.advertise([*have(*KEYS), Synced()])
        subject.set_homes("a")
        await until(lambda: home.messages)
        subject.set_homes("b")
        await until(lambda: subject.are_right([*KEYS], "b"))
        assert len({each.session for each in home.messages}) == 1
