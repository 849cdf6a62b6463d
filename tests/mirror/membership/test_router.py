"""`MembershipRouter` and `PushRouter`: their lifecycle, `members` and `acquire`."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Collection

import pytest
from tests.mirror.membership.common import KEY, NO_EXPIRY, OTHER, fast_limits
from tests.support.neighbours import Neighbour, entered, holder_ids, holders, neighbours, peer_ids, refusing_url
from tests.support.stream_server import stream_server
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import (
    FailureReason,
    Feed,
    Limits,
    MembershipRouter,
    Peer,
    PushRouter,
    RouterUnavailable,
    Upstream,
    Want,
)
from peili.routers.static import StaticRouter

pytestmark = pytest.mark.anyio


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


async def test_what_still_answers_a_message_when_the_router_is_exited_starts_nothing() -> None:
    async with entered(router := StaticRouter([Peer("a", (refusing_url(),))])):
        membership = router._peili_membership  # pyright: ignore[reportPrivateUsage]
        assert membership is not None
    task = membership.tasks.start(asyncio.sleep(3600))
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_router_serves_one_mirror_at_a_time() -> None:
    async with entered(router := StaticRouter([])):
        with pytest.raises(RuntimeError, match="running already"):
            async with entered(router):
                pass
        assert router.ready()


class Unreliable(MembershipRouter):
    """Its `members` yields one set, and then raises or ends."""

    def __init__(self, peers: Collection[Peer], error: Exception | None) -> None:
        self.calls = 0
        self._peers = peers
        self._error = error

    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        self.calls += 1
        yield self._peers if self.calls == 1 else [*self._peers, Peer(f"new-{self.calls}", ())]
        if self._error is not None:
            raise self._error


async def test_a_subclass_may_use_any_attribute_name_and_need_not_call_init() -> None:
    class ManyNames(MembershipRouter):
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

    async with neighbours(Neighbour("a", KEY)) as peers, entered(router := ManyNames(peers)):
        assert await holder_ids(router, KEY) == ["a"]
        assert router.ready()


@pytest.mark.parametrize("error", [OSError("discovery is down"), None], ids=["raises", "ends"])
async def test_members_is_called_again_after_it_ends_or_raises(
    error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    router = Unreliable([Peer("a", (refusing_url(),))], error)
    async with entered(router, limits=fast_limits()):
        assert peer_ids(router) == ["a"], "the last set stays valid"
        await until(lambda: router.calls >= 3)
        assert peer_ids(router) == ["a", f"new-{router.calls}"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (1 if error else 0)


async def test_a_loop_that_is_busy_is_told_once_of_many_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, threads that set members faster than the loop runs would keep it busy for ever."""
    loop, callbacks = asyncio.get_running_loop(), list[object]()
    call_soon = loop.call_soon_threadsafe

    def recording(callback: Callable[..., object], *arguments: object) -> asyncio.Handle:
        callbacks.append(callback)
        return call_soon(callback, *arguments)

    router = PushRouter()
    members = router.members()
    router.set([])
    assert await anext(members) == ()
    monkeypatch.setattr(loop, "call_soon_threadsafe", recording)
    for _ in range(2):
        callbacks.clear()
        for number in range(100):
            router.set([Peer(f"a{number}", (refusing_url(),))])
        assert [each.id for each in await anext(members)] == ["a99"]
        assert len(callbacks) == 1
    await members.aclose()


async def test_members_can_be_set_from_any_thread_at_any_time() -> None:
    router = PushRouter()
    peers = [Peer(name, ("http://127.0.0.1:1",)) for name in "abc"]

    def set_in_thread(*peers: Peer) -> None:
        thread = threading.Thread(target=router.set, args=(peers,))
        thread.start()
        thread.join()

    async with entered(router):
        await until(lambda: router._waiting)  # pyright: ignore[reportPrivateUsage] - nothing else shows that it waits
        assert not router.ready(), "the members are not known yet"
    set_in_thread(peers[0])
    for chosen in (peers[1], peers[2]):
        async with entered(router):
            assert router.ready()
            before = peer_ids(router)
            set_in_thread(chosen)
            await until(lambda before=before: peer_ids(router) != before)  # type: ignore[misc]  # bound early
            assert peer_ids(router) == [chosen.id]
    set_in_thread()
    async with entered(router):
        assert router.ready()
        assert peer_ids(router) == []


async def test_acquire_returns_a_feed_of_the_holders_or_upstream() -> None:
    async with neighbours(Neighbour("a", KEY)) as peers, entered(router := StaticRouter(peers)):
        advice = await router.acquire(Want(KEY))
        assert isinstance(advice, Feed)
        assert [holder.peer for holder in advice.holders] == peers
        assert isinstance(await router.acquire(Want(OTHER)), Upstream)


async def test_acquire_asks_again_if_all_known_holders_failed() -> None:
    a, b = Neighbour("a", KEY), Neighbour("b")
    async with neighbours(a, b) as peers, entered(router := StaticRouter(peers), limits=NO_EXPIRY):
        await router.acquire(Want(KEY))
        b.keys.add(KEY)
        advice = await router.acquire(Want(KEY, failed={"a": FailureReason.BROKEN}))
        assert isinstance(advice, Feed)
        assert [holder.peer.id for holder in advice.holders] == ["b"]
        assert isinstance(
            await router.acquire(Want(KEY, failed={"a": FailureReason.BROKEN, "b": FailureReason.BROKEN})), Upstream
        )
        assert peer_ids(router) == ["a", "b"], "both have answered"


async def test_a_cancelled_error_that_members_raises_does_not_end_the_router() -> None:
    class RaisesCancelled(MembershipRouter):
        calls = 0

        @override
        async def members(self) -> AsyncGenerator[Collection[Peer], None]:
            self.calls += 1
            if self.calls == 1:
                raise asyncio.CancelledError
            yield [Peer("a", (refusing_url(),))]
            await asyncio.get_running_loop().create_future()

    async with entered(router := RaisesCancelled(), limits=fast_limits()):
        await until(lambda: peer_ids(router) == ["a"])


async def test_who_waits_for_advice_is_told_that_the_router_was_exited() -> None:
    asked, closed = asyncio.Event(), asyncio.Event()

    async def never_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        closed.set()

    async with stream_server(never_answers) as port:
        router = StaticRouter([Peer("a", (f"http://127.0.0.1:{port}",))])
        async with entered(router, limits=Limits(lookup_timeout=1000, connect_timeout=1000)):
            waiting = asyncio.create_task(router.acquire(Want(KEY, accepts_in_flight=True)))
            await asked.wait()
        with pytest.raises(RouterUnavailable, match="exited"):
            await waiting
        await closed.wait()
