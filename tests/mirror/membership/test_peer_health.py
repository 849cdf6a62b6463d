"""Which members are alive, which member is this host, and members that use the id of another one."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing

import pytest
from tests.mirror.membership.common import KEY, NO_EXPIRY, OTHER, fast_limits
from tests.support.neighbours import (
    IDENTITY,
    Neighbour,
    black_hole_url,
    entered,
    holder_ids,
    holders,
    neighbours,
    peer_ids,
    refusing_url,
)
from tests.support.waiting import until

from peili.mirror import (
    Digest,
    FailureReason,
    Limits,
    Peer,
    PushRouter,
    Upstream,
    Want,
)
from peili.routers.static import StaticRouter

pytestmark = pytest.mark.anyio


async def test_a_removed_member_is_no_longer_a_holder() -> None:
    a, b = Neighbour("a", KEY), Neighbour("b", KEY)
    async with neighbours(a, b) as peers, entered(router := PushRouter(), limits=NO_EXPIRY):
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
        async with entered(router, limits=NO_EXPIRY):
            assert await holder_ids(router, KEY) == ["a"]
            assert peer_ids(router) == ["a"]


async def test_a_silent_member_costs_its_timeout_only_once() -> None:
    limits = Limits(lookup_timeout=0.3, backoff_min=60, backoff_max=60)
    silent = Neighbour("silent", KEY)
    async with neighbours(silent) as peers, entered(router := StaticRouter(peers), limits=limits):
        silent.open.clear()
        assert await holders(router, KEY) == []
        assert peer_ids(router) == []
        for number in range(20):
            assert await holders(router, Digest.of(bytes([number]))) == []
        assert (silent.asked, silent.probed) == ([KEY], 0)


async def test_a_dead_member_is_unreachable_with_the_reason_and_when_it_was_seen() -> None:
    a = Neighbour("a", KEY)
    async with neighbours(a) as [peer], entered(router := StaticRouter([peer]), limits=fast_limits()):
        started = time.time()
        assert await holder_ids(router, KEY) == ["a"]
        assert list(router.unreachable()) == []
        a.open.clear()
        assert await holders(router, Digest.of(b"other")) == []
        [dead] = router.unreachable()
        assert (dead.peer, dead.reason[: dead.reason.index("within")]) == (peer, "peer a: no answer ")
        assert dead.last_seen is not None
        assert started <= dead.last_seen <= dead.since <= time.time()
        a.open.set()
        await until(lambda: not router.unreachable())


async def test_a_member_that_answers_again_is_a_holder_again() -> None:
    a = Neighbour("a", KEY)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=fast_limits(miss_ttl=60)):
        a.open.clear()
        assert await holders(router, KEY) == []
        assert peer_ids(router) == []
        a.open.set()
        await until(lambda: peer_ids(router) == ["a"])
        assert await holder_ids(router, KEY) == ["a"]


async def test_an_answer_without_an_id_does_not_bring_a_member_back() -> None:
    other = Neighbour(None)
    async with neighbours(other) as [peer], entered(router := StaticRouter([peer]), limits=fast_limits()) as context:
        other.open.clear()
        await holders(router, KEY)
        other.open.set()
        await context.client.head(peer, "/v2/", timeout=5)
        before = other.probed
        await until(lambda: other.probed >= before + 3)
        assert peer_ids(router) == []
        other.identity = "a"
        await until(router.peers)


async def test_a_member_with_new_urls_counts_as_alive() -> None:
    a = Neighbour("a", KEY)
    async with neighbours(a), entered(router := PushRouter(), limits=NO_EXPIRY):
        router.set([Peer("a", (refusing_url(),))])
        await until(router.ready)
        assert await holders(router, KEY) == []
        assert peer_ids(router) == []
        router.set([a.peer])
        await until(router.peers)
        assert await holder_ids(router, KEY) == ["a"]


async def test_a_member_with_the_id_of_this_host_is_left_out() -> None:
    this, a = Neighbour(IDENTITY, KEY), Neighbour("a", KEY)
    async with neighbours(this, a) as peers, entered(router := StaticRouter(peers)):
        assert await holder_ids(router, KEY) == ["a"]
    assert this.asked == []


async def test_a_member_that_answers_with_the_id_of_this_host_is_left_out() -> None:
    this, a = Neighbour(IDENTITY, KEY, OTHER), Neighbour("a", KEY, OTHER)
    async with neighbours(this, a), entered(router := PushRouter(), limits=NO_EXPIRY):
        router.set([Peer("by-url", (this.url,)), a.peer])
        await until(router.ready)
        assert await holder_ids(router, KEY) == ["a"]
        router.set([Peer("by-url", (this.url,)), a.peer])  # the same set again
        assert await holder_ids(router, OTHER) == ["a"]
        assert len(this.asked) == 1, "it is not asked again"
        assert peer_ids(router) == ["a"]
        router.set([Peer("by-url", (this.url,))])
        await until(lambda: peer_ids(router) == ["by-url"])  # another host may have the address now
        assert await holders(router, KEY) == []
        assert len(this.asked) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 500, 503])
async def test_a_member_that_answers_with_any_status_is_alive(status: int) -> None:
    a = Neighbour("a", status=status)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers)):
        assert await holders(router, KEY) == []
        assert peer_ids(router) == ["a"]


async def test_a_403_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with neighbours(Neighbour("a", status=403)) as peers, entered(router := StaticRouter(peers)):
        for key in (KEY, OTHER):
            await holders(router, key)
    advice = "its door is closed to this host; set peer.shared_key_file or peer.tls"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"peer a at {peers[0].urls[0]} answers 403: {advice}"
    ]


async def test_the_second_url_is_found_if_the_first_drops_all_packets() -> None:
    a = Neighbour("a", KEY)
    with black_hole_url() as dropping:
        async with (
            neighbours(a),
            entered(router := StaticRouter([Peer("a", (dropping, a.url))]), limits=fast_limits(miss_ttl=60)),
        ):
            await holders(router, OTHER)
            await until(router.peers)
            assert await holder_ids(router, KEY) == ["a"]


async def test_a_repeated_failure_has_an_effect_only_once() -> None:
    a, b = Neighbour("a", KEY, OTHER), Neighbour("b")
    want = Want(KEY, failed={"a": FailureReason.SILENT})
    unknown = Digest.of(b"unknown")
    async with neighbours(a, b) as peers, entered(router := StaticRouter(peers), limits=NO_EXPIRY):
        assert isinstance(await router.acquire(want), Upstream)
        await until(lambda: peer_ids(router) == ["a", "b"])
        assert await holders(router, unknown) == []
        asked = a.asked.count(unknown)
        for _ in range(3):
            await router.acquire(want)
            assert peer_ids(router) == ["a", "b"]
        assert await holders(router, unknown) == []
        assert a.asked.count(unknown) == asked, "the miss is still remembered"
        a.open.clear()
        await router.acquire(Want(OTHER, failed={"a": FailureReason.SILENT}))
        assert peer_ids(router) == ["b"], "this is another failure"


async def test_a_failure_after_failure_ttl_has_an_effect_again() -> None:
    a, limits = Neighbour("a", KEY), Limits(lookup_timeout=10, failure_ttl=0.05)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=limits):
        for _ in range(2):
            a.open.clear()
            assert isinstance(await router.acquire(Want(KEY, failed={"a": FailureReason.SILENT})), Upstream)
            assert peer_ids(router) == []
            a.open.set()
            await until(router.peers)
            await asyncio.sleep(limits.failure_ttl)


@pytest.mark.parametrize("reason", [FailureReason.UNREACHABLE, FailureReason.SILENT])
async def test_a_peer_that_failed_silently_is_left_out_until_it_answers(reason: str) -> None:
    a, limits = Neighbour("a", KEY), Limits(lookup_timeout=600)
    async with neighbours(a) as peers, entered(router := StaticRouter(peers), limits=limits):
        a.open.clear()
        async with asyncio.timeout(60):  # shorter than the timeout of a lookup
            assert isinstance(await router.acquire(Want(KEY, failed={"a": reason, "unknown": reason})), Upstream)
        assert peer_ids(router) == []
        a.open.set()
        await until(lambda: peer_ids(router) == ["a"])


async def test_a_member_that_answers_with_the_id_of_another_does_not_replace_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    impostor, owner = Neighbour("owner", KEY, OTHER), Neighbour("owner", KEY, OTHER)
    async with neighbours(impostor, owner), entered(router := PushRouter(), limits=NO_EXPIRY):
        router.set([Peer("impostor", (impostor.url,)), owner.peer])
        await until(router.ready)
        assert await holder_ids(router, KEY) == ["impostor", "owner"]
        assert await holder_ids(router, OTHER) == ["impostor", "owner"]
    assert [r.message for r in caplog.records if "another member" in r.message] == [
        "peer impostor answers as owner, which is another member"
    ]


async def test_two_hosts_that_answer_with_the_same_id_are_both_found() -> None:
    impostor, owner = Neighbour("owner", KEY, OTHER), Neighbour("owner", KEY, OTHER)
    async with neighbours(impostor, owner):
        for each in (impostor, owner):  # each of them answers first once
            each.open.clear()
            other = owner if each is impostor else impostor
            async with entered(StaticRouter([Peer(url, (url,)) for url in (impostor.url, owner.url)])) as context:
                router = context.router
                async with aclosing(router.lookup(KEY)) as found:
                    assert (await anext(found)).peer.id == other.url
                    each.open.set()
                    assert (await anext(found)).peer.id == each.url
                assert await holder_ids(router, OTHER) == sorted([impostor.url, owner.url])


async def test_an_impostor_of_this_host_does_not_affect_other_members() -> None:
    impostor, this, a = Neighbour(IDENTITY, KEY), Neighbour(IDENTITY, KEY), Neighbour("a", KEY)
    async with neighbours(impostor, this, a):
        urls = [each.url for each in (impostor, this, a)]
        async with entered(router := StaticRouter([Peer(url, (url,)) for url in urls])):
            assert await holder_ids(router, KEY) == [a.url]
            assert peer_ids(router) == [a.url]


@pytest.mark.parametrize("first", ["owner", "impostor"])
async def test_members_with_the_same_id_are_different_members(first: str, caplog: pytest.LogCaptureFixture) -> None:
    owner, impostor = Neighbour("n", KEY, OTHER), Neighbour("n", KEY, OTHER)
    async with neighbours(owner, impostor) as peers, entered(router := PushRouter(), limits=NO_EXPIRY):
        members = peers if first == "owner" else peers[::-1]
        names = {"n", f"n at {members[1].urls[0]}"}
        for order in (members, members[::-1], [members[0], *members]):
            router.set(order)
            await until(router.peers)
            assert {peer.id: peer.urls for peer in router.peers()} == {
                "n": members[0].urls,
                f"n at {members[1].urls[0]}": members[1].urls,
            }, "a member keeps its name"
        assert set(await holder_ids(router, KEY)) == names
        router.set(members[1:])
        await until(lambda: peer_ids(router) == [f"n at {members[1].urls[0]}"])
        assert len(await holders(router, OTHER)) == 1
    assert len([r for r in caplog.records if "two members are called n" in r.message]) == 1
    assert owner.asked == [str(KEY), str(OTHER)] if first == "impostor" else [str(KEY)]


async def test_no_id_can_take_the_name_of_another_member() -> None:
    peers = [Peer("n", ("http://127.0.0.1:9",)), Peer("n at http://127.0.0.1:7", ("http://127.0.0.1:8",))]
    peers += [Peer("n", ("http://127.0.0.1:7",)), Peer("n", ("http://127.0.0.1:7",), "x"), Peer("n", ())]
    async with entered(router := StaticRouter(peers)):
        assert [peer.urls for peer in router.peers()] == [peer.urls for peer in peers]
        assert len(set(peer_ids(router))) == len(peers)


async def test_each_peer_that_comes_or_goes_has_a_line_and_very_many_have_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    a, b = (Peer(name, (f"http://192.0.2.1/{name}",)) for name in "ab")
    crowd = [Peer(f"host-{number}", (f"http://192.0.2.2/{number}",)) for number in range(100)]
    async with entered(router := PushRouter()):
        for members, count in (([a, b], 2), ([b], 1), ([b, *crowd], 101), ([], 0)):
            router.set(members)
            await until(lambda count=count: len(peer_ids(router)) == count)  # type: ignore[misc]
    lines = [
        record.getMessage() for record in caplog.records if " joined" in record.message or " left" in record.message
    ]
    assert lines == [
        "peer a joined: http://192.0.2.1/a",
        "peer b joined: http://192.0.2.1/b",
        "peer a left: http://192.0.2.1/a",
        "100 peers joined",
        "101 peers left",
    ]
    assert [vars(record)["event"] for record in caplog.records if "peer a" in record.getMessage()] == [
        "peer joined",
        "peer left",
    ]
