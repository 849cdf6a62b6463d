"""A home knows what its own store has before it has reported that to itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from tests.mirror.membership.directory.acquiring import feed, fetchers, homes, names
from tests.mirror.membership.directory.cluster import Host, are_synced, cluster, find
from tests.support.plain_http import plain_client
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Descriptor, Digest, Key, Reference, Store, StoreUnavailable
from peili.mirror.membership.directory.home import Home
from peili.mirror.membership.directory.homes import slot_of
from peili.mirror.peer_api.directory import HoldersQuery, Holdings
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.tasks import Tasks
from peili.mirror.testing import context_for
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

DATA = b"a layer"
KEY = Digest.of(DATA)
ME = "this-host"
TAG = Reference("docker.io", "library/redis", "7")


@asynccontextmanager
async def silent_home(key: Key) -> AsyncGenerator[tuple[Host, list[Host]]]:
    """A cluster in which a home of `key` reports nothing that its store gets. Yields it, and the hosts that ask."""
    async with cluster(4) as hosts:
        await until(lambda: are_synced(hosts))
        by_name = {each.name: each for each in hosts}
        home, other = (by_name[each] for each in homes(hosts[0]).homes_of(slot_of(str(key))))
        home.directory.publisher.advertise = lambda have: None  # type: ignore[method-assign]
        yield home, [each for each in hosts if each not in {home, other}]


async def finds(asking: Host, key: Key, urls: list[str]) -> None:
    """Wait until a lookup yields just these holders. What it found before is remembered for a moment."""
    async with asyncio.timeout(60):
        while await find(asking, key) != urls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("key", [KEY, TAG], ids=str)
async def test_a_lookup_finds_what_a_home_has_got_just_now(key: Key) -> None:
    async with silent_home(key) as (home, [asking, _]):
        home.store.tag(TAG, home.store.add(DATA))
        assert await find(asking, key) == [home.url]
        assert not home.directory.home.records.find(str(key)).holders
        home.store.remove(key)
        await finds(asking, key, [])


async def test_a_host_is_not_sent_upstream_for_what_a_home_has_got_just_now() -> None:
    async with silent_home(KEY) as (home, hosts):
        home.store.add(DATA)
        for asking in hosts:
            assert names(await feed(asking, KEY)) == [home.url]
            await until(lambda: not any(each.is_root for each in fetchers(home, KEY).values()))  # its claim is undone


async def test_a_drained_home_tells_nobody_what_it_has() -> None:
    async with silent_home(KEY) as (home, [asking, _]), plain_client() as client:

        async def status() -> int:
            return (await client.head(f"{home.url}/_router/keys/{KEY}")).status_code

        home.store.add(DATA)
        await finds(asking, KEY, [home.url])
        assert await status() == 200
        await home.mirror.drain(1)
        await finds(asking, KEY, [])
        assert await status() == 404
        await home.mirror.resume()
        await finds(asking, KEY, [home.url])
        assert await status() == 200


class BrokenStore(MemoryStore):
    """A store that does not answer: it raises, or it waits."""

    def __init__(self, error: BaseException | None) -> None:
        super().__init__()
        self._error = error

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        if self._error is None:
            await asyncio.sleep(3600)
            raise AssertionError
        raise self._error


@asynccontextmanager
async def home_with(store: Store, *keys: Key) -> AsyncGenerator[Home]:
    """A home with this store, of which `keys` are open to everybody."""

    async def is_open(key: Key) -> bool:
        return key in keys

    async with context_for(store) as context, Tasks(context.log) as tasks:
        yield Home(replace(context, is_open=is_open), tasks, lambda _: None, lambda _: None)


@pytest.mark.parametrize(
    "error",
    [None, StoreUnavailable("it is away"), ValueError("a bug"), LookupError("another"), asyncio.CancelledError()],
    ids=repr,
)
async def test_a_home_whose_store_does_not_answer_leaves_open_whether_it_is_a_holder(
    error: BaseException | None,
) -> None:
    async with home_with(BrokenStore(error)) as home:
        for host in (ME, "another"):
            home.records.apply(host, Holdings("session", 0, 60, (ME,), is_synced=True))
        usual = home.records.find(str(KEY))
        assert usual.hosts == frozenset({ME, "another"})
        answer = await home.holders(HoldersQuery(str(KEY), known=(usual.version,)), is_proven=True)
        assert (answer.holders, answer.hosts) == ((), frozenset({"another"}))
        again = await home.holders(HoldersQuery(str(KEY), known=(usual.version, answer.version)), is_proven=True)
        assert (again.version, again.hosts) == (answer.version, None)


async def test_a_home_whose_store_is_slow_is_asked_as_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other home says that it is no holder. That is not believed."""

    async def take_too_long(context: Context, key: Key, *, is_proven: bool) -> Descriptor:
        raise TimeoutError(context, key, is_proven)

    monkeypatch.setattr("peili.mirror.membership.directory.home.describe_own", take_too_long)
    async with silent_home(KEY) as (home, [asking, _]):
        home.store.add(DATA)
        assert await find(asking, KEY) == [home.url]


@pytest.mark.parametrize("text", ["", "no key", "sha256:0"])
async def test_a_question_about_something_that_is_no_key_is_answered(text: str) -> None:
    async with home_with(MemoryStore()) as home:
        assert (await home.holders(HoldersQuery(text), is_proven=True)).holders == ()


async def test_a_host_that_has_not_proven_who_it_is_is_told_only_what_is_open() -> None:
    store = MemoryStore()
    other = store.add(b"another layer").digest
    store.add(DATA)
    async with home_with(store, other) as home:
        for key, is_proven, is_told in ((KEY, False, False), (KEY, True, True), (other, False, True)):
            answer = await home.holders(HoldersQuery(str(key)), is_proven=is_proven)
            assert bool(answer.holders) == is_told


class CountingStore(MemoryStore):
    """Counts how often it is asked, and answers when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = self.asked_now = self.most_at_once = 0
        self.may_answer = asyncio.Event()

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        self.asked += 1
        self.asked_now += 1
        self.most_at_once = max(self.most_at_once, self.asked_now)
        try:
            await self.may_answer.wait()
            return await super().describe(digest)
        finally:
            self.asked_now -= 1


async def test_hosts_that_ask_for_the_same_at_once_cost_one_question_to_the_store() -> None:
    store = CountingStore()
    async with home_with(store) as home:
        asking = [asyncio.create_task(home.holders(HoldersQuery(str(KEY)), is_proven=True)) for _ in range(100)]
        await until(lambda: store.asked)
        store.may_answer.set()
        assert all(not answer.holders for answer in await asyncio.gather(*asking))
    assert store.asked == 1


async def test_a_flood_of_questions_leaves_the_store_free_for_its_own_runtime() -> None:
    store = CountingStore()
    queries = [HoldersQuery(str(Digest.of(b"%d" % number))) for number in range(200)]
    async with home_with(store) as home:
        asking = [asyncio.create_task(home.holders(each, is_proven=True)) for each in queries]
        assert all(not answer.holders for answer in await asyncio.gather(*asking))
    assert 0 < store.most_at_once <= 32
