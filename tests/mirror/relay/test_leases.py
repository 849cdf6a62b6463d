"""Every kind of advice: each lease gets the progress, and is released once with the right reason."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest
from tests.mirror.relay.peers import Script, honest, peers, short_after, silent, silent_after, wrong_bytes
from tests.mirror.relay.pulling import LARGE, NEVER, SMALL, Advice, AdvisingRouter, RecordingLease, content, pulling
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import (
    Content,
    Context,
    Digest,
    Feed,
    Holder,
    Lease,
    Peer,
    RouterUnavailable,
    Upstream,
    Wait,
)
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


class FailingLease(Lease):
    """Raises an error at each call."""

    def __init__(self) -> None:
        self.reports = 0

    @override
    def progress(self, offset: int) -> None:
        self.reports += 1
        raise LookupError("no progress")

    @override
    async def release(self, reason: str) -> None:
        raise LookupError("no release")


class SlowLease(Lease):
    """Is released when `may_end` is set. Records how the release ended."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.reasons: list[str] = []
        self.outcomes: list[str] = []

    @override
    async def release(self, reason: str) -> None:
        self.reasons.append(reason)
        outcome = "cancelled"
        try:
            await self.may_end.wait()
            outcome = "released"
        finally:
            self.outcomes.append(outcome)


class StubbornLease(SlowLease):
    """Ignores cancellation."""

    @override
    async def release(self, reason: str) -> None:
        while not self.may_end.is_set():
            with suppress(asyncio.CancelledError):
                await super().release(reason)


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_lease_gets_the_progress_and_ends_as_done(size: int) -> None:
    data, lease = content(size), RecordingLease()
    async with peers(data, honest) as [a], pulling(AdvisingRouter(Feed((a.holder,), lease))) as host:
        await host.get(Digest.of(data))
        await until(lambda: lease.reasons)
    assert lease.offsets == sorted(lease.offsets)
    assert lease.offsets[-1] == size
    assert lease.reasons == ["done"]


async def test_progress_counts_only_bytes_that_the_runtime_received() -> None:
    data, lease = content(LARGE), RecordingLease()
    async with (
        peers(data, short_after(200_000)) as [a],
        pulling(AdvisingRouter(Feed((a.holder,), lease), Upstream())) as host,
    ):
        await host.get(Digest.of(data))
    assert 0 < lease.offsets[-1] < 200_000  # the last piece was withheld


@pytest.mark.parametrize("same", [True, False])
async def test_each_lease_is_released_once_if_the_holder_changes(same: bool) -> None:
    data, first = content(LARGE), RecordingLease()
    second = first if same else RecordingLease()
    async with peers(data, short_after(200_000), honest) as [a, b]:
        router = AdvisingRouter(Feed((a.holder,), first), Feed((b.holder,), second))
        async with pulling(router) as host:
            assert (await host.get(Digest.of(data))).body == data
            await until(lambda: second.reasons)
    assert first.reasons == (["done"] if same else ["broken"])
    assert second.reasons == ["done"]
    assert second.offsets[-1] == LARGE
    assert router.wants[1].offset == 200_000


@pytest.mark.parametrize("script", [silent, silent_after(100_000), silent_after(LARGE - 1)])
async def test_a_lease_is_released_if_the_runtime_disconnects(script: Script) -> None:
    data, lease = content(LARGE), RecordingLease()
    async with (
        peers(data, script) as [a],
        pulling(AdvisingRouter(Feed((a.holder,), lease)), stall_timeout=20, first_byte_timeout=20) as host,
    ):
        connection = await host.ask(Digest.of(data))
        await until(lambda: a.exchanges and a.exchanges[0].is_silent)
        connection.close()
        await until(lambda: lease.reasons)
    assert lease.reasons == ["gone"]


@pytest.mark.parametrize(
    ("script", "size", "reason"),
    [
        (silent, LARGE, "silent"),
        (silent_after(100_000), LARGE, "silent"),
        (short_after(100_000), LARGE, "broken"),
        (wrong_bytes, LARGE, "wrong"),
        (wrong_bytes, SMALL, "wrong"),
    ],
)
async def test_a_lease_is_released_with_the_failure_of_its_holder(script: Script, size: int, reason: str) -> None:
    data, lease = content(size), RecordingLease()
    async with (
        peers(data, script) as [a],
        pulling(AdvisingRouter(Feed((a.holder,), lease), Upstream())) as host,
    ):
        await host.get(Digest.of(data))
        await until(lambda: lease.reasons)
    assert lease.reasons == [reason]


async def test_upstream_is_404_and_releases_its_lease() -> None:
    lease = RecordingLease()
    async with pulling(AdvisingRouter(Upstream(lease))) as host:
        assert (await host.get(Digest.of(b"x"))).status == 404
        await until(lambda: lease.reasons)
    assert lease.reasons == ["done"]


async def test_upstream_in_the_middle_cuts_and_the_next_request_asks_the_router_again() -> None:
    data, feed, upstream = content(LARGE), RecordingLease(), RecordingLease()
    async with (
        peers(data, short_after(200_000)) as [a],
        pulling(AdvisingRouter(Feed((a.holder,), feed), Upstream(upstream))) as host,
    ):
        pulled = await host.get(Digest.of(data))
        assert (pulled.status, pulled.whole, len(pulled.body)) == (200, False, 200_000)
        assert (await host.get(Digest.of(data), "bytes=200000-")).status == 404
    assert feed.reasons == ["broken"]
    assert set(upstream.reasons) == {"done"}


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_failing_lease_does_not_affect_the_runtime(size: int, caplog: pytest.LogCaptureFixture) -> None:
    data, lease = content(size), FailingLease()
    async with peers(data, honest) as [a], pulling(AdvisingRouter(Feed((a.holder,), lease))) as host:
        pulled = await host.get(Digest.of(data))
        assert (pulled.status, pulled.whole, pulled.body) == (200, True, data)
        await until(lambda: "the release of the router's lease failed" in caplog.text)
    assert lease.reports == 1  # and one log line, not one for each piece
    assert caplog.text.count("failed to take progress") == 1
    assert caplog.text.count("the release of the router's lease failed") == 1
    assert "LookupError: no release" in caplog.text


async def test_a_failing_lease_does_not_prevent_the_next_holder() -> None:
    data, first, second = content(LARGE), FailingLease(), RecordingLease()
    async with (
        peers(data, short_after(200_000), honest) as [a, b],
        pulling(AdvisingRouter(Feed((a.holder,), first), Feed((b.holder,), second))) as host,
    ):
        assert (await host.get(Digest.of(data))).body == data
        await until(lambda: second.reasons)
    assert second.offsets[-1] == LARGE
    assert second.reasons == ["done"]


async def test_a_hanging_release_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    lease = SlowLease()
    async with pulling(AdvisingRouter(Upstream(lease)), lookup_timeout=0.2) as host:
        assert (await host.get(Digest.of(b"x"))).status == 404
        await until(lambda: lease.outcomes)
        await until(lambda: host.mirror.metrics.limited.value("lookup_timeout") == 1)
    assert lease.outcomes == ["cancelled"]
    assert caplog.text.count("the release of the router's lease did not return in time") == 1


@pytest.mark.parametrize("advice", ["feed", "another feed", "upstream"])
async def test_the_runtime_does_not_wait_for_a_release(advice: str) -> None:
    data, lease = content(LARGE), SlowLease()
    async with peers(data, short_after(200_000) if advice == "another feed" else honest, honest) as [a, b]:
        first = Upstream(lease) if advice == "upstream" else Feed((a.holder,), lease)
        async with pulling(AdvisingRouter(first, Feed((b.holder,))), lookup_timeout=NEVER) as host:
            async with asyncio.timeout(60):
                pulled = await host.get(Digest.of(data))
            assert (pulled.status, pulled.whole) == ((404 if advice == "upstream" else 200), True)
            await until(lambda: lease.reasons)
            assert not lease.outcomes
            lease.may_end.set()
            await until(lambda: lease.outcomes)
    assert (lease.reasons, lease.outcomes) == ([("broken" if advice == "another feed" else "done")], ["released"])


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_release_outlives_its_request(size: int) -> None:
    data, lease = content(size), SlowLease()
    async with (
        peers(data, honest) as [a],
        pulling(AdvisingRouter(Feed((a.holder,), lease)), lookup_timeout=NEVER) as host,
    ):
        assert (await host.get(Digest.of(data))).body == data
        await until(lambda: lease.reasons)
        await until(lambda: host.mirror.metrics.requests.family().samples)  # the request has ended
        lease.may_end.set()
        await until(lambda: lease.outcomes)
    assert (lease.reasons, lease.outcomes) == (["done"], ["released"])


async def test_draining_does_not_cancel_a_release_after_a_disconnect() -> None:
    data, lease = content(LARGE), SlowLease()
    async with (
        peers(data, silent_after(100_000)) as [a],
        pulling(AdvisingRouter(Feed((a.holder,), lease)), lookup_timeout=NEVER, stall_timeout=NEVER) as host,
    ):
        connection = await host.ask(Digest.of(data))
        await until(lambda: a.exchanges and a.exchanges[0].is_silent)
        connection.close()
        await until(lambda: lease.reasons)
        await host.mirror.drain(0.05)
        assert not lease.outcomes
        lease.may_end.set()
        await until(lambda: lease.outcomes)
    assert (lease.reasons, lease.outcomes) == (["gone"], ["released"])


async def test_draining_waits_for_releases() -> None:
    lease = SlowLease()
    async with pulling(AdvisingRouter(Upstream(lease)), lookup_timeout=NEVER) as host:
        await host.get(Digest.of(b"x"))
        await until(lambda: lease.reasons)
        draining = asyncio.create_task(host.mirror.drain(NEVER))
        done, _ = await asyncio.wait([draining], timeout=0.1)
        assert not done
        lease.may_end.set()
        async with asyncio.timeout(60):
            await draining
        assert lease.outcomes == ["released"]


class ExitRecorder(AdvisingRouter):
    """Records the outcomes of the releases when the mirror exits it."""

    def __init__(self, lease: SlowLease, *advice: Advice) -> None:
        super().__init__(*advice)
        self.lease = lease
        self.outcomes: list[str] | None = None

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        yield
        self.outcomes = list(self.lease.outcomes)


async def test_the_mirror_waits_for_releases_before_it_exits_the_router() -> None:
    lease = SlowLease()
    router = ExitRecorder(lease, Upstream(lease))
    async with pulling(router, lookup_timeout=NEVER, stop_timeout=NEVER, drain_timeout=0.05) as host:
        await host.get(Digest.of(b"x"))
        await until(lambda: lease.reasons)
        asyncio.get_running_loop().call_later(0.3, lease.may_end.set)
    assert router.outcomes == ["released"]


async def test_the_mirror_cancels_a_release_that_takes_too_long_at_exit(caplog: pytest.LogCaptureFixture) -> None:
    lease = SlowLease()
    router = ExitRecorder(lease, Upstream(lease))
    before = asyncio.all_tasks()
    async with pulling(router, lookup_timeout=NEVER, stop_timeout=0.2, drain_timeout=0.05) as host:
        await host.get(Digest.of(b"x"))
        await until(lambda: lease.reasons)
    assert router.outcomes == ["cancelled"]
    assert not asyncio.all_tasks() - before
    assert host.mirror.metrics.limited.value("stop_timeout") == 1
    assert "1 of the router's leases were not released in time" in caplog.text


async def test_a_release_that_ignores_cancellation_does_not_block_the_exit() -> None:
    lease = StubbornLease()
    async with asyncio.timeout(60):
        async with pulling(AdvisingRouter(Upstream(lease)), stop_timeout=0.2, drain_timeout=0.05) as host:
            await host.get(Digest.of(b"x"))
            await until(lambda: lease.reasons)
    lease.may_end.set()
    await until(lambda: lease.outcomes[-1] == "released")


async def test_a_response_that_outlives_the_mirror_waits_for_its_release_itself() -> None:
    data, lease = content(LARGE), SlowLease()
    async with (
        peers(data, silent_after(100_000)) as [a],
        pulling(
            AdvisingRouter(Feed((a.holder,), lease), Upstream()), stall_timeout=NEVER, lookup_timeout=NEVER
        ) as host,
    ):
        await host.ask(Digest.of(data))
        await until(lambda: a.exchanges and a.exchanges[0].is_silent)
        await host.mirror.__aexit__(None, None, None)
        await until(lambda: lease.reasons)
        ended = host.mirror.metrics.requests.family
        for _ in range(10):
            await asyncio.sleep(0)
            assert not ended().samples
        lease.may_end.set()
        await until(lambda: ended().samples)
    assert (lease.reasons, lease.outcomes) == (["broken"], ["released"])


async def test_pending_releases_count_as_transfers() -> None:
    lease = SlowLease()
    router = AdvisingRouter(lambda: Upstream(lease), lambda: Upstream(Lease()))
    async with pulling(router, lookup_timeout=NEVER, transfers=1) as host:
        for count in (1, 1, 1):
            assert (await host.get(Digest.of(b"x"))).status == 404
            assert len(router.wants) == count
        assert host.mirror.metrics.limited.value("transfers") == 2
        lease.may_end.set()
        await until(lambda: lease.outcomes)
        await host.get(Digest.of(b"x"))
        assert len(router.wants) == 2


async def test_a_slow_store_does_not_blame_the_peer_during_the_read_back(caplog: pytest.LogCaptureFixture) -> None:
    class SlowStore(MemoryStore):
        @override
        async def open(self, digest: Digest, *, partial: bool = False) -> Content:
            return await asyncio.Future[Content]()

    data, lease, at = content(LARGE), RecordingLease(), 300_000
    async with (
        peers(data, honest) as [a],
        pulling(AdvisingRouter(Feed((a.holder,), lease)), store=SlowStore(), wait_timeout=1) as host,
    ):
        pulled = await host.get(Digest.of(data), f"bytes={at}-")
        assert (pulled.status, pulled.whole, pulled.body) == (206, True, data[at:])
        await until(lambda: lease.reasons)
        assert len(a.requests) == 1
        assert host.mirror.metrics.limited.value("wait_timeout") == 1
    assert lease.reasons == ["done"]
    assert "relayed unverified: the bytes that the runtime has can't be read back in time" in caplog.text


@pytest.mark.parametrize(
    "error", [TimeoutError("a bug"), ConnectionResetError("a bug"), LookupError("a bug")], ids=repr
)
async def test_a_store_that_fails_to_read_back_does_not_affect_the_runtime(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class FailingStore(MemoryStore):
        @override
        async def open(self, digest: Digest, *, partial: bool = False) -> Content:
            raise error

    data, at = content(LARGE), 300_000
    async with peers(data, honest) as [a], pulling([a.holder], store=FailingStore()) as host:
        pulled = await host.get(Digest.of(data), f"bytes={at}-")
        assert (pulled.status, pulled.whole, pulled.body) == (206, True, data[at:])
        assert host.mirror.metrics.limited.value("wait_timeout") == 0
    assert "relayed unverified: the bytes that the runtime has can't be read back\nTraceback" in caplog.text


async def test_a_wait_is_obeyed() -> None:
    data = content(SMALL)

    def wait() -> Wait:
        return Wait(asyncio.get_running_loop().time() + 0.2)

    async with peers(data, honest) as [a]:
        router = AdvisingRouter(wait, wait, Feed((a.holder,)))
        async with pulling(router) as host:
            pulled = await host.get(Digest.of(data))
            assert pulled.body == data
            assert len(router.wants) == 3


@pytest.mark.parametrize(("until_", "max_wants"), [(-1.0, 41), (0.0, 41), (float("inf"), 1)])
async def test_waiting_ends_and_makes_no_busy_loop(until_: float, max_wants: int) -> None:
    router = AdvisingRouter(Wait(until_))
    async with pulling(router, wait_timeout=0.4) as host:
        assert (await host.get(Digest.of(b"x"))).status == 404
        assert host.mirror.metrics.limited.value("wait_timeout") == 1
        assert len(router.wants) <= max_wants


async def test_a_router_that_repeats_a_failed_holder_gets_404() -> None:
    data = content(SMALL)
    async with peers(data, silent_after(0)) as [a], pulling(AdvisingRouter(Feed((a.holder,)))) as host:
        assert (await host.get(Digest.of(data))).status == 404
        assert len(a.requests) == 1


async def test_a_feed_without_holders_is_404() -> None:
    lease = RecordingLease()
    async with pulling(AdvisingRouter(Feed((), lease))) as host:
        assert (await host.get(Digest.of(b"x"))).status == 404
        await until(lambda: lease.reasons)
    assert len(lease.reasons) == 1


@pytest.mark.parametrize("answer", [None, (), Lease()])
async def test_invalid_advice_is_404_and_logged(answer: object, caplog: pytest.LogCaptureFixture) -> None:
    def advise() -> Advice:
        assert len(router.wants) < 100, "the router is asked in a busy loop"  # a loop that never yields has no deadline
        return cast("Advice", answer)

    router = AdvisingRouter(advise)
    async with pulling(router) as host:
        assert (await host.get(Digest.of(b"x"))).status == 404
    assert len(router.wants) == 1
    [error] = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert f"AdvisingRouter.acquire returned {answer!r}" in error


@pytest.mark.parametrize("error", [RouterUnavailable("away"), OSError("broken"), TypeError("a bug")])
async def test_a_failing_router_is_404(error: Exception) -> None:
    async with pulling(AdvisingRouter(error)) as host:
        assert (await host.get(Digest.of(b"x"))).status == 404


@pytest.mark.parametrize("error", [RouterUnavailable("away"), OSError("broken"), TypeError("a bug")])
async def test_a_router_that_fails_in_the_middle_cuts_after_progress(error: Exception) -> None:
    data, lease = content(LARGE), RecordingLease()
    async with (
        peers(data, short_after(200_000)) as [a],
        pulling(AdvisingRouter(Feed((a.holder,), lease), error)) as host,
    ):
        pulled = await host.get(Digest.of(data))
        assert (pulled.status, pulled.whole, len(pulled.body)) == (200, False, 200_000)
        await until(lambda: lease.reasons)
    assert lease.reasons == ["broken"]


MALFORMED = [
    Feed(cast("tuple[Holder, ...]", None)),
    Feed(cast("tuple[Holder, ...]", (Peer("a", ()),))),
    Feed((), cast("Lease", None)),
    Upstream(cast("Lease", None)),
    Wait(cast("float", None)),
]


@pytest.mark.parametrize("answer", MALFORMED, ids=["no holders", "a peer", "no lease", "upstream", "wait"])
async def test_an_answer_with_a_part_of_a_wrong_type_sends_the_runtime_upstream_and_is_logged(
    answer: Advice, caplog: pytest.LogCaptureFixture
) -> None:
    async with pulling(AdvisingRouter(answer)) as host:
        assert (await host.get(Digest.of(b"something"))).status == 404
    (line,) = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert f"AdvisingRouter.acquire returned {answer!r}, not Feed, Wait or Upstream with" in line
