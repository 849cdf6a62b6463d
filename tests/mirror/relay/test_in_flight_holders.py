"""Feeders: holders whose copy is still arriving. The relay waits for one that waits, and leaves one at fault."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from tests.mirror.metrics.test_metrics import scrape
from tests.mirror.relay.feeders import ScriptedFeeder, gets, in_flight
from tests.mirror.relay.peers import Exchange, ScriptedPeer, honest, listening, peers, silent
from tests.mirror.relay.pulling import (
    LARGE,
    MIB,
    SMALL,
    Advice,
    AdvisingRouter,
    Host,
    PullResult,
    RecordingLease,
    content,
    pulling,
)
from tests.support.waiting import WAIT, until
from typing_extensions import override

from peili.mirror import Digest, Feed, Holder, Upstream
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

HALF = LARGE // 2
QUICK: dict[str, Any] = {"hedge_delay": 0.04, "lookup_timeout": 2.0}


class FeedingLease(RecordingLease):
    """Records the holders, too, and is superseded when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.used: list[Holder] = []
        self.is_superseded = asyncio.Event()

    @override
    def use(self, holder: Holder) -> None:
        assert not self.reasons, "use after the release"
        self.used.append(holder)

    @override
    async def superseded(self) -> None:
        await self.is_superseded.wait()


@dataclass
class Feeding:
    """A host that is fed by `feeder`, the script of peer a."""

    host: Host
    router: AdvisingRouter
    feeder: ScriptedFeeder
    lease: FeedingLease
    a: ScriptedPeer
    b: ScriptedPeer
    digest: Digest
    data: bytes

    async def received(self, count: int) -> None:
        """Wait until the host has received all of the `count` bytes that the feeder has."""
        if count:
            await until(lambda: any(each.sent >= count for each in self.a.exchanges))
            await self.feeder.asked(2)  # it asks when nothing more arrives

    @asynccontextmanager
    async def getting(self, byte_range: str | None = None) -> AsyncGenerator[asyncio.Task[PullResult]]:
        """Request the content in the background."""
        task = asyncio.create_task(self.host.get(self.digest, byte_range))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])


@asynccontextmanager
async def feeding(
    *further: Advice | str, size: int = LARGE, available: int = HALF, store: MemoryStore | None = None, **limits: Any
) -> AsyncGenerator[Feeding]:
    """Let a host be fed by peer a, and then follow the `further` advice; "b" means that the whole holder b feeds it."""
    data, feeder, lease = content(size), ScriptedFeeder(available), FeedingLease()
    async with peers(data, feeder, honest) as [a, b]:
        advice = [Feed((b.holder,)) if each == "b" else each for each in further]
        router = AdvisingRouter(Feed((in_flight(a),), lease), *(each for each in advice if not isinstance(each, str)))
        async with pulling(router, store=store, **{**QUICK, **limits}) as host:
            yield Feeding(host, router, feeder, lease, a, b, Digest.of(data), data)


@pytest.mark.parametrize("is_advised", [True, False], ids=["by acquire", "by lookup"])
async def test_whole_holders_come_first(is_advised: bool) -> None:
    data = content(SMALL)
    async with peers(data, honest, honest) as [a, b]:
        partial = replace(a.holder, complete=False, available=10)
        router = AdvisingRouter(Feed((partial, b.holder))) if is_advised else [partial, b.holder]
        async with pulling(router) as host:
            pulled = await host.get(Digest.of(data))
        assert (pulled.status, pulled.body) == (200, data)
        assert (len(a.requests), len(b.requests)) == (0, 1)


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_content_is_read_while_it_arrives_at_the_feeder(size: int) -> None:
    async with feeding(size=size, available=100) as f, f.getting() as getting:
        for _ in range(3):
            await f.feeder.set(available=f.feeder.available + size // 4)
            await f.feeder.asked(2)
        await f.feeder.set(available=size)
        pulled = await getting
        assert (pulled.status, pulled.whole, pulled.body) == (200, True, f.data)
        await until(lambda: f.lease.reasons)
        assert f.lease.reasons == ["done"]
    [request] = [each for each in f.a.requests if each.method == "GET"]
    assert request.headers["peili-in-flight"] == "1"
    assert request.headers["peili-id"] == f.host.mirror.identity.id
    assert not f.b.requests
    used = [holder.available or 0 for holder in f.lease.used]
    assert len(used) > 1
    assert used == sorted(used)
    assert {(holder.peer, holder.complete) for holder in f.lease.used} == {(f.a.peer, False)}


class Showing(MemoryStore):
    """A store that shows content in flight."""

    @override
    def shows_in_flight(self) -> bool:
        return True


async def test_a_host_that_continues_to_the_end_can_share() -> None:
    """It may be sent upstream for others then."""
    async with feeding("b", available=HALF, store=Showing()) as f, f.getting() as getting:
        await f.received(HALF)
        f.lease.is_superseded.set()
        await getting
        assert [(want.offset, want.can_share) for want in f.router.wants[:2]] == [(0, True), (HALF, True)]


async def test_the_router_learns_what_the_host_knows_and_shows() -> None:
    async with feeding(available=LARGE, store=Showing()) as f:
        await f.host.get(f.digest, method="HEAD")
        await f.host.get(f.digest)
        await f.host.get(f.digest, "bytes=100-")
        await f.host.get(f.digest, "bytes=100-200")
        await f.host.get(f.digest, "bytes=-200")
    wants = [(want.offset, want.accepts_in_flight, want.can_share) for want in f.router.wants[-5:]]
    assert wants[1:] == [(0, True, True), (100, True, True), (100, True, False), (0, False, False)]
    assert not any(want.accepts_in_flight for want in f.router.wants[:-4])


@pytest.mark.parametrize("before_the_first_byte", [True, False])
@pytest.mark.parametrize("waiting", ["upstream", "c"])
async def test_a_feeder_that_waits_is_waited_for(before_the_first_byte: bool, waiting: str) -> None:
    """However long it takes, compared with the time after which a silent holder is left."""
    async with feeding("b", available=0 if before_the_first_byte else HALF) as f, f.getting() as getting:
        await f.feeder.set(waiting=waiting, path=("a", *([] if waiting == "upstream" else [waiting])))
        if before_the_first_byte:
            f.feeder.held.clear()
        await f.feeder.asked(12)
        await f.feeder.set(path=("a", "d"))  # it has another root now
        await f.feeder.asked(3)
        f.feeder.held.set()
        await f.feeder.set(available=LARGE)
        assert (await getting).body == f.data
        assert len(gets(f.a, f.digest)) == 1
        assert not f.b.requests
        assert len(f.router.wants) == 1


async def test_a_feeder_whose_router_has_no_keys_is_asked_for_the_content() -> None:
    async with feeding("b") as f, f.getting() as getting:
        await f.feeder.set(has_keys=False)
        await f.feeder.asked(4)
        await f.feeder.set(available=LARGE)
        assert (await getting).body == f.data
        assert len(f.router.wants) == 1


async def _does_not_answer(exchange: Exchange) -> None:
    await exchange.silence()


async def _resets(exchange: Exchange) -> None:
    exchange.reset()


@pytest.mark.parametrize("before_the_first_byte", [True, False])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"on_question": _does_not_answer}, "silent"),
        ({"on_question": _resets}, "silent"),
        ({"status": 404}, "starving"),
        ({"path": ("a", "me")}, "circular"),
        ({"available": LARGE, "sends": HALF}, "slow"),
        ({"is_whole": True, "sends": HALF}, "slow"),
    ],
)
async def test_a_feeder_at_fault_is_replaced_at_the_byte(
    change: dict[str, Any], reason: str, before_the_first_byte: bool
) -> None:
    start = 0 if before_the_first_byte else HALF
    if "sends" in change:
        change = {**change, "sends": start}
    async with feeding("b", available=start, lookup_timeout=0.2) as f:
        if before_the_first_byte:
            f.feeder.held.clear()
        async with f.getting() as getting:
            await until(lambda: gets(f.a, f.digest))
            await f.received(start)
            if "path" in change:
                change = {"path": ("a", f.host.mirror.identity.id)}
            await f.feeder.set(**change)
            pulled = await getting
        assert (pulled.status, pulled.whole, pulled.body) == (200, True, f.data)
        assert gets(f.b, f.digest) == [None if before_the_first_byte else f"bytes={HALF}-{LARGE - 1}"]
        assert dict(f.router.wants[1].failed) == {"a": reason}
        assert f.router.wants[1].offset == start
        await until(lambda: f.lease.reasons)
        assert f.lease.reasons == [reason]
        f.router.wants.clear()
        await f.host.get(f.digest)
        is_blamed = "a" in f.router.wants[0].failed
        assert is_blamed is (reason == "silent"), "only a host that does not answer is avoided later"


async def test_a_feeder_that_sends_much_less_than_it_receives_is_replaced() -> None:
    async with feeding("b", size=16 * MIB, available=MIB, rate_window=0.3) as f:
        f.feeder.sends = 0

        async def grow(_: Exchange) -> None:
            await f.feeder.set(available=f.feeder.available + MIB, sends=(f.feeder.sends or 0) + 1000)

        f.feeder.on_question = grow
        pulled = await f.host.get(f.digest)
        assert (pulled.whole, pulled.body) == (True, f.data)
        assert dict(f.router.wants[1].failed) == {"a": "slow"}


async def test_a_feeder_is_not_slow_if_the_runtime_reads_nothing() -> None:
    async with feeding("b", size=64 * MIB, available=64 * MIB, rate_window=0.1) as f:
        await f.host.ask(f.digest)
        await until(lambda: gets(f.a, f.digest))
        await f.feeder.asked(8)
        assert len(f.router.wants) == 1
        assert not f.b.requests


@pytest.mark.parametrize(("status", "reason"), [(404, "starving"), (200, "broken")])
async def test_a_cut_response_has_the_reason_that_the_feeder_states(status: int, reason: str) -> None:
    async with feeding("b") as f, f.getting() as getting:
        await f.received(HALF)
        await f.feeder.set(status=status, is_cut=True)
        assert (await getting).body == f.data
        assert dict(f.router.wants[1].failed) == {"a": reason}
        was_suspected = any(each.path.startswith("/_relay/") for each in f.a.requests)
        assert was_suspected is (reason == "broken"), "one that only starves has found out nothing"


async def test_a_feeder_that_does_not_say_what_it_received_is_left_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peili.mirror.relay.tracing._ANSWER_TIMEOUT", 1000.0)
    async with feeding("b", lookup_timeout=0.5) as f, f.getting() as getting:
        await f.received(HALF)
        f.feeder.may_say.clear()
        await f.feeder.set(is_cut=True)
        assert (await asyncio.wait_for(getting, WAIT)).body == f.data


async def test_a_dead_feeder_is_unreachable() -> None:
    data, feeder = content(LARGE), ScriptedFeeder(HALF)
    a = ScriptedPeer("a", data, feeder)
    async with peers(data, silent, honest) as [_, b], AsyncExitStack() as alive:
        await alive.enter_async_context(listening(a))
        router = AdvisingRouter(Feed((in_flight(a),)), Feed((b.holder,)))
        async with pulling(router, **QUICK) as host:
            getting = asyncio.create_task(host.get(Digest.of(data)))
            await until(lambda: gets(a, Digest.of(data)))
            await feeder.asked(1)
            await alive.aclose()
            assert (await getting).body == data
    assert dict(router.wants[1].failed) == {"a": "unreachable"}


async def test_a_feeder_that_dies_after_its_last_byte_has_done_its_work() -> None:
    async with feeding("b", available=LARGE) as f:
        await f.feeder.set(status=404)
        pulled = await f.host.get(f.digest)
        assert (pulled.whole, pulled.body) == (True, f.data)
        assert len(f.router.wants) == 1


async def test_a_feeder_that_has_become_whole_is_an_ordinary_holder() -> None:
    async with feeding(available=LARGE) as f:
        await f.feeder.set(is_whole=True)
        assert (await f.host.get(f.digest)).body == f.data
        assert [holder.complete for holder in f.lease.used] == [True]


async def test_waiting_without_progress_ends_with_404() -> None:
    async with feeding(available=0, wait_timeout=0.5) as f:
        f.feeder.held.clear()
        assert (await f.host.get(f.digest)).status == 404
        await until(lambda: f.lease.reasons)
        assert f.lease.reasons == ["waiting"]
        assert f.host.mirror.metrics.limited.value("wait_timeout") > 0


async def test_waiting_in_the_middle_ends_with_a_cut_and_then_the_runtime_goes_upstream() -> None:
    """The next request waits for nobody: it would be cut at the same byte."""
    async with feeding(wait_timeout=0.5) as f:
        state = f.host.mirror._relay._state  # pyright: ignore[reportPrivateUsage]
        assert state is not None
        state.blame._clock = lambda: 0.0  # pyright: ignore[reportPrivateUsage] - it is remembered for 0.5 s only
        pulled = await f.host.get(f.digest)
        assert (pulled.status, pulled.whole, len(pulled.body)) == (200, False, HALF)
        assert (await f.host.get(f.digest, f"bytes={HALF}-")).status == 404
        assert len(gets(f.a, f.digest)) == 1
        assert not f.router.wants[-1].accepts_in_flight
        await until(lambda: len(f.lease.reasons) >= 1)
        assert "gone" not in f.lease.reasons


async def test_waiting_blames_nobody() -> None:
    async with feeding(wait_timeout=0.4) as f:
        await f.host.get(f.digest)
        metrics = scrape(f.host.mirror)
        assert metrics("peili_peer_failures_total", reason="waiting") == 1
        f.feeder.is_whole = True
        f.router.wants.clear()
        await f.host.get(f.digest)
        assert not f.router.wants[0].failed


@pytest.mark.parametrize("before_the_first_byte", [True, False])
async def test_a_superseded_lease_lets_the_host_ask_again_at_the_byte(before_the_first_byte: bool) -> None:
    start = 0 if before_the_first_byte else HALF
    async with feeding("b", available=start) as f, f.getting() as getting:
        await until(lambda: gets(f.a, f.digest))
        await f.received(start)
        f.lease.is_superseded.set()
        assert (await getting).body == f.data
        assert (f.router.wants[1].offset, dict(f.router.wants[1].failed)) == (start, {})
        await until(lambda: f.lease.reasons)
        assert f.lease.reasons == ["superseded"]


async def test_a_superseded_lease_of_a_whole_holder_moves_the_transfer_too() -> None:
    data, lease = content(LARGE), FeedingLease()

    async def half(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send(exchange.body[:HALF])
        await exchange.silence()

    async with peers(data, half, honest) as [a, b]:
        router = AdvisingRouter(Feed((a.holder,), lease), Feed((b.holder,)))
        async with pulling(router, stall_timeout=600.0) as host:
            getting = asyncio.create_task(host.get(Digest.of(data)))
            await until(lambda: lease.offsets)
            lease.is_superseded.set()
            assert (await getting).body == data
    assert [holder.peer.id for holder in lease.used] == ["a"]
    assert lease.reasons == ["superseded"]


async def test_a_lease_that_is_always_superseded_at_once_does_not_use_up_the_restarts() -> None:
    data, lease = content(LARGE), FeedingLease()
    lease.is_superseded.set()
    async with peers(data, honest) as [a], pulling(AdvisingRouter(Feed((a.holder,), lease))) as host:
        assert (await host.get(Digest.of(data))).body == data


async def test_upstream_in_the_middle_cuts_at_the_byte() -> None:
    """The runtime then asks for the rest, is told the same, and continues upstream."""
    upstream = RecordingLease()
    async with feeding(Upstream(upstream)) as f, f.getting() as getting:
        await f.received(HALF)
        f.lease.is_superseded.set()
        pulled = await getting
        assert (pulled.status, pulled.whole, pulled.body) == (200, False, f.data[:HALF])
        assert (await f.host.get(f.digest, f"bytes={HALF}-")).status == 404
        await until(lambda: f.lease.reasons and upstream.reasons)
        assert f.lease.reasons == ["superseded"]
        assert set(upstream.reasons) == {"done"}


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_after_wrong_bytes_only_whole_holders_are_asked(size: int) -> None:
    async with feeding("b", size=size, available=size // 2) as f, f.getting() as getting:
        f.feeder.sent = b"?" + f.data[1:]
        await f.feeder.asked(2)
        await f.feeder.set(available=size)
        pulled = await getting
        if size == SMALL:  # verified before the first byte is sent
            assert (pulled.status, pulled.body) == (200, f.data)
        else:
            assert (pulled.whole, len(pulled.body) < size) == (False, True)
        assert not f.router.wants[1].accepts_in_flight
        assert not f.router.wants[1].failed, "the feeder may have passed on the wrong byte of another host"
        assert (await f.host.get(f.digest)).body == f.data
        assert not f.router.wants[-1].accepts_in_flight
        assert f.lease.reasons == ["wrong"]


async def test_a_wrong_end_that_was_read_in_flight_is_fetched_from_a_whole_holder() -> None:
    async with feeding("b", available=LARGE) as f:
        f.feeder.sent = f.data[:-1] + b"?"
        pulled = await f.host.get(f.digest)
        assert (pulled.whole, pulled.body) == (True, f.data)
        assert not f.router.wants[1].accepts_in_flight


async def test_a_manifest_is_read_while_it_arrives() -> None:
    data, feeder = b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"}', ScriptedFeeder(10)
    async with peers(data, feeder) as [a], pulling(AdvisingRouter(Feed((in_flight(a),)))) as host:
        getting = asyncio.create_task(host.get(Digest.of(data), kind="manifests"))
        await until(lambda: gets(a, Digest.of(data)))
        await feeder.set(available=len(data))
        pulled = await getting
    assert (pulled.status, pulled.body) == (200, data)
    assert pulled.headers["content-type"] == "application/vnd.oci.image.index.v1+json"


@pytest.mark.parametrize("byte_range", ["bytes=0-", "bytes=100-"])
async def test_an_open_range_in_flight_is_one_stream_without_a_length(byte_range: str) -> None:
    """containerd would otherwise fetch parts in parallel, each of which takes a place at the feeder."""
    async with feeding(available=LARGE) as f:
        pulled = await f.host.get(f.digest, byte_range)
        start = int(byte_range[6:-1])
        assert (pulled.status, pulled.whole, pulled.body) == (206 if start else 200, True, f.data[start:])
        assert "content-length" not in pulled.headers
        assert gets(f.a, f.digest) == ["bytes=0-" if not start else f"bytes={start}-"]


async def test_a_runtime_that_leaves_while_its_host_waits_is_gone() -> None:
    async with feeding(available=0) as f:
        f.feeder.held.clear()
        connection = await f.host.ask(f.digest)
        await f.feeder.asked(2)
        connection.close()
        await until(lambda: f.lease.reasons)
        assert f.lease.reasons == ["gone"]


@pytest.mark.parametrize("is_advised", [True, False], ids=["by acquire", "by lookup"])
async def test_a_head_request_reads_nothing_in_flight(is_advised: bool) -> None:
    data = content(SMALL)
    async with peers(data, honest) as [a]:
        partial = replace(a.holder, complete=False, available=10)
        async with pulling(AdvisingRouter(Feed((partial,))) if is_advised else [partial]) as host:
            assert (await host.get(Digest.of(data), method="HEAD")).status == 404
        assert not a.requests


async def _sent(peer: ScriptedPeer, count: int) -> None:
    await until(lambda: any(each.sent > count for each in peer.exchanges))


async def test_a_long_transfer_may_have_more_feeders_than_restarts() -> None:
    data, feeders = content(8 * MIB), [ScriptedFeeder((each + 1) * MIB) for each in range(8)]
    leases = [FeedingLease() for _ in feeders]
    async with peers(data, *feeders) as scripted:
        advice = [Feed((in_flight(each),), lease) for each, lease in zip(scripted, leases, strict=True)]
        async with pulling(AdvisingRouter(*advice), restarts=3, **QUICK) as host:
            getting = asyncio.create_task(host.get(Digest.of(data)))
            for number, lease in enumerate(leases[:-1]):
                await _sent(scripted[number], MIB)
                await feeders[number].asked(2)  # all that it has has arrived
                lease.is_superseded.set()
            pulled = await getting
    assert (pulled.whole, pulled.body) == (True, data)
