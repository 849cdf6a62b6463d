"""Lookups: which members are asked for a key, how often, and how long the result is remembered."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from tests.mirror.membership.common import KEY, NO_EXPIRY, OTHER
from tests.support.neighbours import (
    Neighbour,
    entered,
    holder_ids,
    holders,
    neighbours,
    peer_ids,
    refusing_url,
    served,
    silent_url,
)
from tests.support.waiting import until

from peili.mirror import (
    Digest,
    Limits,
    Peer,
    PushRouter,
    Reference,
)
from peili.mirror.client.client import PeerClient
from peili.mirror.client.connection import ResponseHead
from peili.routers.static import StaticRouter

pytestmark = pytest.mark.anyio

TAG = Reference("docker.io", "library/redis", "7")


@pytest.mark.parametrize("key", [KEY, TAG, Reference("[::1]:5000", "team/app", "v1")], ids=str)
async def test_a_lookup_yields_the_members_that_have_the_key(key: Digest | Reference) -> None:
    a, b = Neighbour("a", key), Neighbour("b")
    async with neighbours(a, b) as peers, entered(router := StaticRouter(peers)):
        assert [(each.peer, each.complete, each.size) for each in await holders(router, key)] == [(a.peer, True, 7)]
    assert a.asked == b.asked == [str(key)]


async def test_a_lookup_of_an_unknown_key_yields_nothing() -> None:
    async with neighbours(Neighbour("a"), Neighbour("b")) as peers, entered(router := StaticRouter(peers)):
        assert await holders(router, KEY) == []
        assert peer_ids(router) == ["a", "b"]


async def test_a_lookup_without_members_ends_at_once() -> None:
    async with entered(router := StaticRouter([])):
        assert await holders(router, KEY) == []


async def test_a_slow_member_does_not_delay_a_fast_holder() -> None:
    a, slow = Neighbour("a", KEY), Neighbour("slow", KEY)
    async with neighbours(a, slow) as peers, entered(router := StaticRouter(peers), limits=NO_EXPIRY):
        slow.open.clear()
        async with aclosing(router.lookup(KEY)) as found:
            assert (await anext(found)).peer.id == "a"
            slow.open.set()
            assert (await anext(found)).peer.id == "slow"


async def test_the_number_of_members_asked_at_once_is_limited() -> None:
    members = [Neighbour(f"n{number}") for number in range(5)]
    limits = Limits(lookup_timeout=10, lookup_fanout=2)
    async with neighbours(*members) as peers, entered(router := StaticRouter(peers), limits=limits):
        for each in members:
            each.open.clear()
        lookup = asyncio.create_task(holders(router, KEY))
        for asked in (2, 3, 4, 5):
            await until(lambda asked=asked: sum(len(each.asked) for each in members) == asked)  # type: ignore[misc]  # bound early
            assert sum(each.at_once for each in members) == 2
            next(each for each in members if each.at_once).open.set()
            if asked == 5:
                break
        for each in members:
            each.open.set()
        assert await lookup == []


async def test_concurrent_lookups_of_a_key_share_one_query() -> None:
    a = Neighbour("a", KEY)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=NO_EXPIRY):
        a.open.clear()
        lookups = [asyncio.create_task(holder_ids(router, KEY)) for _ in range(5)]
        await until(lambda: a.asked)
        lookups[0].cancel()
        a.open.set()
        assert await asyncio.gather(*lookups[1:]) == [["a"]] * 4
    assert len(a.asked) == 1


async def test_holders_are_remembered() -> None:
    a = Neighbour("a", KEY)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=NO_EXPIRY):
        for _ in range(20):
            assert await holder_ids(router, KEY) == ["a"]
    assert len(a.asked) == 1


async def test_holders_are_forgotten_after_lookup_ttl() -> None:
    a = Neighbour("a", KEY)
    limits = Limits(lookup_timeout=20, lookup_ttl=0.3, miss_ttl=600)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=limits):
        while len(a.asked) < 2:
            assert await holder_ids(router, KEY) == ["a"]


async def test_a_miss_is_remembered() -> None:
    a = Neighbour("a")
    limits = Limits(lookup_timeout=20, lookup_ttl=0.001, miss_ttl=600)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=limits):
        assert await holders(router, KEY) == []
        a.keys.add(KEY)
        for _ in range(20):
            assert await holders(router, KEY) == []
    assert len(a.asked) == 1


async def test_a_miss_is_forgotten_after_miss_ttl() -> None:
    a = Neighbour("a")
    limits = Limits(lookup_timeout=20, lookup_ttl=600, miss_ttl=0.3)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=limits):
        assert await holders(router, KEY) == []
        a.keys.add(KEY)
        while not await holders(router, KEY):  # noqa: ASYNC110 - what is waited for is asked for
            await asyncio.sleep(0.01)
    assert len(a.asked) == 2


async def test_the_number_of_remembered_keys_is_limited() -> None:
    a = Neighbour("a")
    limits = Limits(lookup_timeout=20, miss_ttl=60, lookup_keys=2)
    keys = [Digest.of(bytes([number])) for number in range(3)]
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=limits):
        for key in (keys[0], keys[1], keys[0], keys[2], keys[0], keys[1]):
            await holders(router, key)
    assert a.asked == [keys[0], keys[1], keys[2], keys[1]], "the least recently used is forgotten"


async def test_a_new_member_is_asked_after_a_miss() -> None:
    a, b = Neighbour("a"), Neighbour("b", KEY)
    async with neighbours(a, b), entered(router := PushRouter(), limits=NO_EXPIRY):
        router.set([a.peer])
        await until(router.ready)
        assert await holders(router, KEY) == []
        router.set([a.peer, b.peer])
        await until(lambda: peer_ids(router) == ["a", "b"])
        assert await holder_ids(router, KEY) == ["b"]


async def test_a_bug_in_the_request_to_a_member_does_not_affect_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a, odd = Neighbour("a", KEY), Neighbour("odd", KEY)
    head, failed = PeerClient.head, list[str]()

    async def odd_at_first(client: PeerClient, peer: Peer, path: str, **options: Any) -> ResponseHead:
        if peer.id == "odd" and len(failed) < 3:
            failed.append(path)
            raise TypeError("unexpected")
        return await head(client, peer, path, **options)

    monkeypatch.setattr(PeerClient, "head", odd_at_first)
    limits = Limits(lookup_timeout=20, lookup_fanout=1, lookup_ttl=0.001, backoff_min=0.05, backoff_max=0.1)
    async with neighbours(a, odd) as peers, entered(router := StaticRouter(peers), limits=limits):
        assert await holder_ids(router, KEY) == ["a"]
        assert peer_ids(router) == ["a"]
        await until(lambda: peer_ids(router) == ["a", "odd"])
        assert await holder_ids(router, KEY) == ["a", "odd"]
    assert len(failed) == 3
    assert "asking peer odd failed" in caplog.text


async def test_a_miss_is_not_remembered_if_some_members_were_not_asked() -> None:
    limits = Limits(lookup_timeout=0.2, lookup_fanout=1, miss_ttl=60, backoff_min=60, backoff_max=60)
    with silent_url() as one, silent_url() as two:
        peers = [Peer(url, (url,)) for url in (one, two)]  # their ids are not known, so they are not asked as homes
        async with entered(router := StaticRouter(peers), limits=limits):
            for left in (1, 0):
                assert await holders(router, KEY) == []
                assert len(router.peers()) == left


async def test_a_member_that_did_not_answer_as_a_home_is_not_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    head, asked = PeerClient.head, list[str]()

    async def recording(client: PeerClient, peer: Peer, path: str, **options: Any) -> ResponseHead:
        asked.append(path)
        return await head(client, peer, path, **options)

    monkeypatch.setattr(PeerClient, "head", recording)
    limits = Limits(lookup_timeout=20, backoff_min=60, backoff_max=60)
    async with entered(router := StaticRouter([Peer("one", (refusing_url(),))]), limits=limits):
        assert await holders(router, KEY) == []
        assert not router.peers()
    assert not any(path.startswith("/_router/keys/") for path in asked)


async def test_two_members_with_the_same_url_are_one_holder() -> None:
    a = Neighbour("a", KEY)
    async with neighbours(a), entered(router := StaticRouter([Peer("one", (a.url,)), Peer("two", (a.url,))])):
        assert len(await holders(router, KEY)) == 1


@pytest.mark.parametrize(
    "headers",
    [{"Peili-Complete": ""}, {"Peili-Complete": "false"}, {"Docker-Content-Digest": OTHER}],
    ids=["no peili", "in flight", "something else"],
)
async def test_an_answer_with_wrong_headers_is_not_a_holder(headers: dict[str, str]) -> None:
    a = Neighbour("a", KEY)
    a.extra = headers
    async with neighbours(a) as peers, entered(router := StaticRouter(peers)):
        assert await holders(router, KEY) == []


@pytest.mark.parametrize("size", ["", "-1", "1e3", "٣", "9" * 40])
async def test_an_invalid_size_is_ignored(size: str) -> None:
    a = Neighbour("a", KEY)
    a.extra = {"Peili-Size": size} if size.isascii() else {"Peili-Size": "³".encode().decode("latin-1")}
    async with neighbours(a) as peers, entered(router := StaticRouter(peers)):
        assert [each.size for each in await holders(router, KEY)] == [None]


async def test_the_second_url_is_used_if_the_first_refuses_connections() -> None:
    a = Neighbour("a", KEY)
    async with served(a.app(), "::1") as url:
        router = StaticRouter([Peer("a", (refusing_url(), url))])
        async with entered(router):
            assert await holder_ids(router, KEY) == ["a"]


async def test_a_running_lookup_ends_when_the_router_exits() -> None:
    a = Neighbour("a", KEY)
    async with neighbours(a) as peers:
        a.open.clear()
        before = asyncio.all_tasks()
        async with entered(router := StaticRouter(peers), limits=replace(NO_EXPIRY, lookup_timeout=600)):
            lookup = asyncio.create_task(holders(router, KEY))
            await until(lambda: a.asked)
        assert await asyncio.wait_for(lookup, 60) == []
        assert {task for task in asyncio.all_tasks() - before if "peili" in repr(task.get_coro())} == set()


async def test_a_lookup_that_starts_during_the_exit_ends() -> None:
    async with neighbours(Neighbour("a", KEY)) as peers:
        async with entered(router := StaticRouter(peers), limits=replace(NO_EXPIRY, lookup_timeout=600)):
            found = router.lookup(KEY)
            waiting = asyncio.ensure_future(anext(found, None))
            await asyncio.sleep(0)
        assert await asyncio.wait_for(waiting, 60) is None
        await found.aclose()
