"""Finding content by asking the members: whom is asked, how often, and who is left out."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from typing import Any

import pytest
from tests.routers.neighbours import (
    IDENTITY,
    Neighbour,
    black_hole_url,
    entered,
    holder_ids,
    holders,
    neighbours,
    peer_ids,
    refusing_url,
    served,
    silent_url,
    until,
)
from typing_extensions import override

from peili.mirror import (
    Digest,
    Feed,
    Limits,
    MembershipRouter,
    Peer,
    PushRouter,
    Reference,
    RouterUnavailable,
    Upstream,
    Want,
)
from peili.mirror.client.client import PeerClient
from peili.mirror.client.connection import ResponseHead
from peili.mirror.errors import FailureReason
from peili.routers.static import StaticRouter

pytestmark = pytest.mark.anyio

KEY = Digest.of(b"a layer")
OTHER = Digest.of(b"another layer")
TAG = Reference("docker.io", "library/redis", "7")

PATIENT = Limits(lookup_timeout=10, lookup_ttl=60, miss_ttl=60)
"""For tests in which nothing may expire by itself."""


def quick(**changes: float) -> Limits:
    """For tests that wait for something to time out."""
    return Limits(**{"lookup_timeout": 0.5, "backoff_min": 0.05, "backoff_max": 0.1, **changes})  # type: ignore[arg-type]  # floats all


@pytest.mark.parametrize("key", [KEY, TAG, Reference("[::1]:5000", "team/app", "v1")], ids=str)
async def test_a_lookup_yields_the_members_that_have_the_key(key: Digest | Reference) -> None:
    a, b = Neighbour("a", key), Neighbour("b")
    async with neighbours(a, b) as peers, entered(router := StaticRouter(peers)):
        assert [(each.peer, each.complete, each.size) for each in await holders(router, key)] == [(a.peer, True, 7)]
    assert a.asked == b.asked == [str(key)]


async def test_a_lookup_of_what_nobody_has_yields_nothing() -> None:
    async with neighbours(Neighbour("a"), Neighbour("b")) as peers, entered(router := StaticRouter(peers)):
        assert await holders(router, KEY) == []
        assert peer_ids(router) == ["a", "b"]


async def test_without_members_a_lookup_ends_at_once() -> None:
    async with entered(router := StaticRouter([])):
        assert await holders(router, KEY) == []


async def test_a_router_that_is_not_entered_is_unavailable() -> None:
    router = StaticRouter([Peer("a", (refusing_url(),))])
    with pytest.raises(RouterUnavailable):
        await holders(router, KEY)
    with pytest.raises(RouterUnavailable):
        await router.acquire(Want(KEY))
    assert not router.ready()
    assert not router.peers()


async def test_a_router_can_be_entered_again() -> None:
    async with neighbours(Neighbour("a", KEY)) as peers:
        router = StaticRouter(peers)
        for _ in range(2):
            async with entered(router):
                assert router.ready()
                assert await holder_ids(router, KEY) == ["a"]
            assert not router.ready()


async def test_a_router_serves_one_mirror_at_a_time() -> None:
    async with entered(router := StaticRouter([])):
        with pytest.raises(RuntimeError, match="running already"):
            async with entered(router):
                pass
        assert router.ready()


async def test_a_quick_holder_is_not_held_back_by_a_slow_member() -> None:
    a, slow = Neighbour("a", KEY), Neighbour("slow", KEY)
    async with neighbours(a, slow) as peers, entered(router := StaticRouter(peers), limits=PATIENT):
        slow.open.clear()
        async with aclosing(router.lookup(KEY)) as found:
            assert (await anext(found)).peer.id == "a"
            slow.open.set()
            assert (await anext(found)).peer.id == "slow"


async def test_no_more_members_are_asked_at_once_than_the_limit_says() -> None:
    those = [Neighbour(f"n{number}") for number in range(5)]
    limits = Limits(lookup_timeout=10, lookup_fanout=2)
    async with neighbours(*those) as peers, entered(router := StaticRouter(peers), limits=limits):
        for each in those:
            each.open.clear()
        lookup = asyncio.create_task(holders(router, KEY))
        for asked in (2, 3, 4, 5):
            await until(lambda asked=asked: sum(len(each.asked) for each in those) == asked)  # type: ignore[misc]  # bound early
            assert sum(each.at_once for each in those) == 2
            next(each for each in those if each.at_once).open.set()
            if asked == 5:
                break
        for each in those:
            each.open.set()
        assert await lookup == []


async def test_concurrent_lookups_of_a_key_ask_once() -> None:
    a = Neighbour("a", KEY)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=PATIENT):
        a.open.clear()
        lookups = [asyncio.create_task(holder_ids(router, KEY)) for _ in range(5)]
        await until(lambda: a.asked)
        lookups[0].cancel()
        a.open.set()
        assert await asyncio.gather(*lookups[1:]) == [["a"]] * 4
    assert len(a.asked) == 1


async def test_what_was_found_is_remembered() -> None:
    a = Neighbour("a", KEY)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=PATIENT):
        for _ in range(20):
            assert await holder_ids(router, KEY) == ["a"]
    assert len(a.asked) == 1


async def test_what_was_found_is_forgotten_after_a_while() -> None:
    a = Neighbour("a", KEY)
    limits = Limits(lookup_timeout=20, lookup_ttl=0.3, miss_ttl=600)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=limits):
        while len(a.asked) < 2:
            assert await holder_ids(router, KEY) == ["a"]


async def test_that_nobody_has_it_is_remembered() -> None:
    a = Neighbour("a")
    limits = Limits(lookup_timeout=20, lookup_ttl=0.001, miss_ttl=600)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=limits):
        assert await holders(router, KEY) == []
        a.keys.add(KEY)
        for _ in range(20):
            assert await holders(router, KEY) == []
    assert len(a.asked) == 1


async def test_that_nobody_has_it_is_forgotten_after_a_while() -> None:
    a = Neighbour("a")
    limits = Limits(lookup_timeout=20, lookup_ttl=600, miss_ttl=0.3)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=limits):
        assert await holders(router, KEY) == []
        a.keys.add(KEY)
        while not await holders(router, KEY):  # noqa: ASYNC110 - what is waited for is asked for
            await asyncio.sleep(0.01)
    assert len(a.asked) == 2


async def test_no_more_keys_are_remembered_than_the_limit_says() -> None:
    a = Neighbour("a")
    limits = Limits(lookup_timeout=20, miss_ttl=60, lookup_keys=2)
    keys = [Digest.of(bytes([number])) for number in range(3)]
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=limits):
        for key in (keys[0], keys[1], keys[0], keys[2], keys[0], keys[1]):
            await holders(router, key)
    assert a.asked == [keys[0], keys[1], keys[2], keys[1]], "the least recently used is forgotten"


async def test_a_new_member_is_asked_for_what_nobody_had() -> None:
    a, b = Neighbour("a"), Neighbour("b", KEY)
    async with neighbours(a, b), entered(router := PushRouter(), limits=PATIENT):
        router.set([a.peer])
        await until(router.ready)
        assert await holders(router, KEY) == []
        router.set([a.peer, b.peer])
        await until(lambda: peer_ids(router) == ["a", "b"])
        assert await holder_ids(router, KEY) == ["b"]


async def test_a_member_that_left_is_no_holder_any_more() -> None:
    a, b = Neighbour("a", KEY), Neighbour("b", KEY)
    async with neighbours(a, b) as peers, entered(router := PushRouter(), limits=PATIENT):
        router.set(peers)
        await until(router.ready)
        assert await holder_ids(router, KEY) == ["a", "b"]
        router.set([b.peer])
        await until(lambda: peer_ids(router) == ["b"])
        assert await holder_ids(router, KEY) == ["b"]


async def test_a_member_that_refuses_connections_is_left_out() -> None:
    a = Neighbour("a", KEY)
    async with neighbours(a):
        router = StaticRouter([Peer("dead", (refusing_url(),)), a.peer])
        async with entered(router, limits=PATIENT):
            assert await holder_ids(router, KEY) == ["a"]
            assert peer_ids(router) == ["a"]


async def test_a_member_that_can_not_even_be_asked_harms_no_other_and_may_be_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a, odd = Neighbour("a", KEY), Neighbour("odd", KEY)
    head, failed = PeerClient.head, list[str]()

    async def odd_at_first(client: PeerClient, peer: Peer, path: str, **options: Any) -> ResponseHead:
        if peer.id == "odd" and len(failed) < 3:
            failed.append(path)
            raise TypeError("what nobody thought of")
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


async def test_a_member_that_is_silent_costs_its_time_only_once() -> None:
    limits = Limits(lookup_timeout=0.3, backoff_min=60, backoff_max=60)
    silent = Neighbour("silent", KEY)
    async with neighbours(silent) as peers, entered(router := StaticRouter(peers), limits=limits):
        silent.open.clear()
        assert await holders(router, KEY) == []
        assert peer_ids(router) == []
        for number in range(20):
            assert await holders(router, Digest.of(bytes([number]))) == []
        assert (silent.asked, silent.probed) == ([KEY], 0)


async def test_that_nobody_has_it_is_not_remembered_when_not_all_could_be_asked() -> None:
    limits = Limits(lookup_timeout=0.2, lookup_fanout=1, miss_ttl=60, backoff_min=60, backoff_max=60)
    with silent_url() as one, silent_url() as two:
        async with entered(router := StaticRouter([Peer("one", (one,)), Peer("two", (two,))]), limits=limits):
            for left in (1, 0):
                assert await holders(router, KEY) == []
                assert len(router.peers()) == left


async def test_a_member_that_answers_again_is_back_with_all_it_has() -> None:
    a = Neighbour("a", KEY)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=quick(miss_ttl=60)):
        a.open.clear()
        assert await holders(router, KEY) == []
        assert peer_ids(router) == []
        a.open.set()
        await until(lambda: peer_ids(router) == ["a"])
        assert await holder_ids(router, KEY) == ["a"]


async def test_what_answers_without_saying_who_it_is_does_not_bring_a_member_back() -> None:
    stranger = Neighbour(None)
    async with neighbours(stranger) as [peer], entered(router := StaticRouter([peer]), limits=quick()) as context:
        stranger.open.clear()
        await holders(router, KEY)
        stranger.open.set()
        await context.client.head(peer, "/v2/", timeout=5)
        before = stranger.probed
        await until(lambda: stranger.probed >= before + 3)
        assert peer_ids(router) == []
        stranger.identity = "a"
        await until(router.peers)


async def test_a_member_with_new_urls_is_believed_to_live() -> None:
    a = Neighbour("a", KEY)
    async with neighbours(a), entered(router := PushRouter(), limits=PATIENT):
        router.set([Peer("a", (refusing_url(),))])
        await until(router.ready)
        assert await holders(router, KEY) == []
        assert peer_ids(router) == []
        router.set([a.peer])
        await until(router.peers)
        assert await holder_ids(router, KEY) == ["a"]


async def test_this_host_is_left_out_by_its_id() -> None:
    me, a = Neighbour(IDENTITY, KEY), Neighbour("a", KEY)
    async with neighbours(me, a) as peers, entered(router := StaticRouter(peers)):
        assert await holder_ids(router, KEY) == ["a"]
    assert me.asked == []


async def test_this_host_is_recognised_by_its_answer() -> None:
    me, a = Neighbour(IDENTITY, KEY, OTHER), Neighbour("a", KEY, OTHER)
    async with neighbours(me, a), entered(router := PushRouter(), limits=PATIENT):
        router.set([Peer("by-url", (me.url,)), a.peer])
        await until(router.ready)
        assert await holder_ids(router, KEY) == ["a"]
        router.set([Peer("by-url", (me.url,)), a.peer])  # which says nothing new
        assert await holder_ids(router, OTHER) == ["a"]
        assert len(me.asked) == 1, "known from then on"
        assert peer_ids(router) == ["a"]
        router.set([Peer("by-url", (me.url,))])
        await until(lambda: peer_ids(router) == ["by-url"])  # the address may be another host's by now
        assert await holders(router, KEY) == []
        assert len(me.asked) == 2


async def test_two_entries_for_one_host_are_one_holder() -> None:
    a = Neighbour("a", KEY)
    async with neighbours(a), entered(router := StaticRouter([Peer("one", (a.url,)), Peer("two", (a.url,))])):
        assert len(await holders(router, KEY)) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 500, 503])
async def test_a_member_that_answers_anything_lives(status: int) -> None:
    a = Neighbour("a", status=status)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers)):
        assert await holders(router, KEY) == []
        assert peer_ids(router) == ["a"]


async def test_a_closed_door_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    async with neighbours(Neighbour("a", status=403)) as peers, entered(router := StaticRouter(peers)):
        for key in (KEY, OTHER):
            await holders(router, key)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "peer a answers 403: its door is closed to this host; do both use the same key or authority?"
    ]


@pytest.mark.parametrize(
    "headers",
    [{"Peili-Complete": ""}, {"Peili-Complete": "false"}, {"Docker-Content-Digest": OTHER}],
    ids=["no peili", "in flight", "something else"],
)
async def test_an_answer_that_is_no_claim_to_have_the_key_is_none(headers: dict[str, str]) -> None:
    a = Neighbour("a", KEY)
    a.extra = headers
    async with neighbours(a) as peers, entered(router := StaticRouter(peers)):
        assert await holders(router, KEY) == []


@pytest.mark.parametrize("size", ["", "-1", "1e3", "٣", "9" * 40])
async def test_a_size_that_makes_no_sense_is_not_known(size: str) -> None:
    a = Neighbour("a", KEY)
    a.extra = {"Peili-Size": size} if size.isascii() else {"Peili-Size": "³".encode().decode("latin-1")}
    async with neighbours(a) as peers, entered(router := StaticRouter(peers)):
        assert [each.size for each in await holders(router, KEY)] == [None]


async def test_a_member_is_reached_by_its_second_url_if_the_first_refuses() -> None:
    a = Neighbour("a", KEY)
    async with served(a.app(), "::1") as url:
        router = StaticRouter([Peer("a", (refusing_url(), url))])
        async with entered(router):
            assert await holder_ids(router, KEY) == ["a"]


async def test_a_member_whose_first_url_is_a_black_hole_is_found_by_its_second() -> None:
    a = Neighbour("a", KEY)
    with black_hole_url() as hole:
        async with (
            neighbours(a),
            entered(router := StaticRouter([Peer("a", (hole, a.url))]), limits=quick(miss_ttl=60)),
        ):
            await holders(router, OTHER)
            await until(router.peers)
            assert await holder_ids(router, KEY) == ["a"]


async def test_leaving_ends_a_lookup_that_is_under_way() -> None:
    a = Neighbour("a", KEY)
    async with neighbours(a) as peers:
        a.open.clear()
        before = asyncio.all_tasks()
        async with entered(router := StaticRouter(peers), limits=PATIENT):
            lookup = asyncio.create_task(holders(router, KEY))
            await until(lambda: a.asked)
        assert await asyncio.wait_for(lookup, 5) == []
        assert {task for task in asyncio.all_tasks() - before if "peili" in repr(task.get_coro())} == set()


async def test_a_lookup_that_begins_as_the_router_is_left_ends() -> None:
    async with neighbours(Neighbour("a", KEY)) as peers:
        async with entered(router := StaticRouter(peers), limits=PATIENT):
            found = router.lookup(KEY)
            waiting = asyncio.ensure_future(anext(found, None))
            await asyncio.sleep(0)
        assert await asyncio.wait_for(waiting, 5) is None
        await found.aclose()


class Unreliable(MembershipRouter):
    """Tells `peers`, then raises or ends, each time."""

    def __init__(self, peers: Collection[Peer], error: Exception | None) -> None:
        self.told = 0
        self._peers = peers
        self._error = error

    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        self.told += 1
        yield self._peers if self.told == 1 else [*self._peers, Peer(f"new-{self.told}", ())]
        if self._error is not None:
            raise self._error


async def test_a_subclass_may_use_any_attribute_name_and_need_not_call_our_init() -> None:
    class Naming(MembershipRouter):
        def __init__(self, peers: Collection[Peer]) -> None:
            names = ("context", "health", "key_lookup", "lookup_key", "membership", "members_", "state", "tasks", "log")
            for name in names:
                for attribute in (name, f"_{name}", f"__{name}", f"_MembershipRouter__{name}"):
                    setattr(self, attribute, "the subclass's own")
            self._peers = peers

        @override
        async def members(self) -> AsyncGenerator[Collection[Peer], None]:
            yield self._peers
            await asyncio.get_running_loop().create_future()

    async with neighbours(Neighbour("a", KEY)) as peers, entered(router := Naming(peers)):
        assert await holder_ids(router, KEY) == ["a"]
        assert router.ready()


@pytest.mark.parametrize("error", [OSError("discovery is down"), None], ids=["raises", "ends"])
async def test_members_that_fail_are_asked_for_again(error: Exception | None, caplog: pytest.LogCaptureFixture) -> None:
    router = Unreliable([Peer("a", (refusing_url(),))], error)
    async with entered(router, limits=quick()):
        assert peer_ids(router) == ["a"], "the last set stays"
        await until(lambda: router.told >= 3)
        assert peer_ids(router) == ["a", f"new-{router.told}"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (1 if error else 0)


async def test_members_can_be_pushed_from_any_thread_at_any_time() -> None:
    router = PushRouter()
    peers = [Peer(name, ("http://127.0.0.1:1",)) for name in "abc"]

    def push(*those: Peer) -> None:
        thread = threading.Thread(target=router.set, args=(those,))
        thread.start()
        thread.join()

    async with entered(router):
        await until(lambda: router._waiting)  # pyright: ignore[reportPrivateUsage] - nothing else tells that it does
        assert not router.ready(), "nobody has said yet who the members are"
    push(peers[0])
    for pushed in (peers[1], peers[2]):
        async with entered(router):
            assert router.ready()
            before = peer_ids(router)
            push(pushed)
            await until(lambda before=before: peer_ids(router) != before)  # type: ignore[misc]  # bound early
            assert peer_ids(router) == [pushed.id]
    push()
    async with entered(router):
        assert router.ready()
        assert peer_ids(router) == []


async def test_acquire_feeds_from_holders_and_sends_upstream_without() -> None:
    async with neighbours(Neighbour("a", KEY)) as peers, entered(router := StaticRouter(peers)):
        advice = await router.acquire(Want(KEY))
        assert isinstance(advice, Feed)
        assert [holder.peer for holder in advice.holders] == peers
        assert isinstance(await router.acquire(Want(OTHER)), Upstream)


async def test_acquire_asks_afresh_when_all_known_holders_failed() -> None:
    a, b = Neighbour("a", KEY), Neighbour("b")
    async with neighbours(a, b) as peers, entered(router := StaticRouter(peers), limits=PATIENT):
        await router.acquire(Want(KEY))
        b.keys.add(KEY)
        advice = await router.acquire(Want(KEY, failed={"a": FailureReason.BROKEN}))
        assert isinstance(advice, Feed)
        assert [holder.peer.id for holder in advice.holders] == ["b"]
        assert isinstance(
            await router.acquire(Want(KEY, failed={"a": FailureReason.BROKEN, "b": FailureReason.BROKEN})), Upstream
        )
        assert peer_ids(router) == ["a", "b"], "they did answer"


async def test_a_failure_is_acted_on_once_however_often_it_is_repeated() -> None:
    a, b = Neighbour("a", KEY, OTHER), Neighbour("b")
    want = Want(KEY, failed={"a": FailureReason.SILENT})
    nowhere = Digest.of(b"nowhere")
    async with neighbours(a, b) as peers, entered(router := StaticRouter(peers), limits=PATIENT):
        assert isinstance(await router.acquire(want), Upstream)
        await until(lambda: peer_ids(router) == ["a", "b"])
        assert await holders(router, nowhere) == []
        asked = a.asked.count(nowhere)
        for _ in range(3):
            await router.acquire(want)
            assert peer_ids(router) == ["a", "b"]
        assert await holders(router, nowhere) == []
        assert a.asked.count(nowhere) == asked, "that nobody has it is still remembered"
        a.open.clear()
        await router.acquire(Want(OTHER, failed={"a": FailureReason.SILENT}))
        assert peer_ids(router) == ["b"], "which is another failure"


async def test_a_failure_after_another_is_acted_on_again() -> None:
    a, limits = Neighbour("a", KEY), Limits(lookup_timeout=10, failure_ttl=0.05)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=limits):
        for _ in range(2):
            a.open.clear()
            assert isinstance(await router.acquire(Want(KEY, failed={"a": FailureReason.SILENT})), Upstream)
            assert peer_ids(router) == []
            a.open.set()
            await until(router.peers)
            await asyncio.sleep(limits.failure_ttl)


@pytest.mark.parametrize("why", [FailureReason.UNREACHABLE, FailureReason.SILENT])
async def test_a_peer_that_failed_without_a_word_is_left_out_until_it_answers(why: str) -> None:
    a, limits = Neighbour("a", KEY), Limits(lookup_timeout=600)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=limits):
        a.open.clear()
        async with asyncio.timeout(60):  # less than the lookup would wait for it
            assert isinstance(await router.acquire(Want(KEY, failed={"a": why, "unknown": why})), Upstream)
        assert peer_ids(router) == []
        a.open.set()
        await until(lambda: peer_ids(router) == ["a"])


async def test_a_member_that_answers_with_anothers_id_never_hides_it(caplog: pytest.LogCaptureFixture) -> None:
    borrower, owner = Neighbour("owner", KEY, OTHER), Neighbour("owner", KEY, OTHER)
    async with neighbours(borrower, owner), entered(router := PushRouter(), limits=PATIENT):
        router.set([Peer("borrower", (borrower.url,)), owner.peer])
        await until(router.ready)
        assert await holder_ids(router, KEY) == ["borrower", "owner"]
        assert await holder_ids(router, OTHER) == ["borrower", "owner"]
    assert [r.message for r in caplog.records if "another member" in r.message] == [
        "peer borrower answers as owner, which is another member"
    ]


async def test_whoever_has_an_id_is_found_where_ids_are_unknown_beforehand() -> None:
    borrower, owner = Neighbour("owner", KEY, OTHER), Neighbour("owner", KEY, OTHER)
    async with neighbours(borrower, owner):
        for each in (borrower, owner):  # each is the first to answer once
            each.open.clear()
            other = owner if each is borrower else borrower
            async with entered(StaticRouter([Peer(url, (url,)) for url in (borrower.url, owner.url)])) as context:
                router = context.router
                async with aclosing(router.lookup(KEY)) as found:
                    assert (await anext(found)).peer.id == other.url
                    each.open.set()
                    assert (await anext(found)).peer.id == each.url
                assert await holder_ids(router, OTHER) == sorted([borrower.url, owner.url])


async def test_who_answers_with_this_hosts_id_harms_nobody_else() -> None:
    liar, me, a = Neighbour(IDENTITY, KEY), Neighbour(IDENTITY, KEY), Neighbour("a", KEY)
    async with neighbours(liar, me, a):
        urls = [each.url for each in (liar, me, a)]
        async with entered(router := StaticRouter([Peer(url, (url,)) for url in urls])):
            assert await holder_ids(router, KEY) == [a.url]
            assert peer_ids(router) == [a.url]


@pytest.mark.parametrize("first", ["owner", "borrower"])
async def test_members_with_one_id_are_two_members(first: str, caplog: pytest.LogCaptureFixture) -> None:
    owner, borrower = Neighbour("n", KEY, OTHER), Neighbour("n", KEY, OTHER)
    async with neighbours(owner, borrower) as peers, entered(router := PushRouter(), limits=PATIENT):
        told = peers if first == "owner" else peers[::-1]
        names = {"n", f"n at {told[1].urls[0]}"}
        for order in (told, told[::-1], [told[0], *told]):
            router.set(order)
            await until(router.peers)
            assert {peer.id: peer.urls for peer in router.peers()} == {
                "n": told[0].urls,
                f"n at {told[1].urls[0]}": told[1].urls,
            }, "a name stays with its place"
        assert set(await holder_ids(router, KEY)) == names
        router.set(told[1:])
        await until(lambda: peer_ids(router) == [f"n at {told[1].urls[0]}"])
        assert len(await holders(router, OTHER)) == 1
    assert len([r for r in caplog.records if "two members are called n" in r.message]) == 1
    assert owner.asked == [str(KEY), str(OTHER)] if first == "borrower" else [str(KEY)]


async def test_no_id_can_be_made_up_that_takes_a_name_away() -> None:
    peers = [Peer("n", ("http://127.0.0.1:9",)), Peer("n at http://127.0.0.1:7", ("http://127.0.0.1:8",))]
    peers += [Peer("n", ("http://127.0.0.1:7",)), Peer("n", ("http://127.0.0.1:7",), "x"), Peer("n", ())]
    async with entered(router := StaticRouter(peers)):
        assert [peer.urls for peer in router.peers()] == [peer.urls for peer in peers]
        assert len(set(peer_ids(router))) == len(peers)


async def test_a_stray_cancellation_of_the_plug_ins_does_not_end_the_following() -> None:
    class Straying(MembershipRouter):
        calls = 0

        @override
        async def members(self) -> AsyncGenerator[Collection[Peer], None]:
            self.calls += 1
            if self.calls == 1:
                raise asyncio.CancelledError
            yield [Peer("a", (refusing_url(),))]
            await asyncio.get_running_loop().create_future()

    async with entered(router := Straying(), limits=quick()):
        await until(lambda: peer_ids(router) == ["a"])
