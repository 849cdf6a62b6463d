"""Holders that fail in the middle: the next one continues where the last one stopped, unnoticed by the runtime."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tests.mirror.relay.peers import (
    Exchange,
    Script,
    answers,
    breaks_connections,
    drips_after,
    honest,
    ignores_range,
    in_turn,
    other_range,
    other_size,
    peers,
    resets_after,
    short_after,
    silent,
    silent_after,
    too_large,
)
from tests.mirror.relay.pulling import DATA_PATHS, LARGE, SMALL, FixedRouter, content, pulling
from tests.support.waiting import until

from peili.mirror import Digest
from peili.mirror.relay import source

pytestmark = pytest.mark.anyio

STOP = 200_000

STOPPING = {
    "reset": resets_after(STOP),
    "short": short_after(STOP),
    "silent": silent_after(STOP),
    "slow": drips_after(STOP),
}


@pytest.mark.parametrize("path", DATA_PATHS)
@pytest.mark.parametrize("how", STOPPING)
async def test_the_next_holder_continues_at_the_byte_where_the_last_one_stopped(how: str, path: str) -> None:
    data = content(LARGE)
    async with peers(data, STOPPING[how], honest) as [a, b], pulling([a.holder, b.holder], **DATA_PATHS[path]) as host:
        pulled = await host.get(Digest.of(data))
        assert (pulled.status, pulled.whole) == (200, True)
        assert pulled.body == data
        assert a.ranges == [None]
        [byte_range] = b.ranges
        if how == "slow":
            assert byte_range is not None
            first, last = byte_range.removeprefix("bytes=").split("-")
            assert STOP < int(first) <= a.exchanges[0].sent
            assert int(last) == LARGE - 1
        else:
            assert byte_range == f"bytes={STOP}-{LARGE - 1}"
        await until(lambda: a.open == 0)


class JumpingClock:
    """A clock that jumps forward at the first look, as if this host had been suspended."""

    def __init__(self, seconds: float) -> None:
        self._jump = seconds
        self._looks = 0

    def monotonic(self) -> float:
        self._looks += 1
        return time.monotonic() + (self._jump if self._looks > 1 else 0)


@pytest.mark.parametrize("path", DATA_PATHS)
async def test_a_peer_is_not_slow_because_this_host_was_suspended(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = content(LARGE)
    monkeypatch.setattr(source, "time", JumpingClock(15))
    long: dict[str, Any] = {**DATA_PATHS[path], "stall_timeout": 20, "rate_window": 10, "min_rate": 100 * LARGE}
    async with peers(data, honest, honest) as [a, b], pulling([a.holder, b.holder], **long) as host:
        assert (await host.get(Digest.of(data))).body == data
        assert (a.ranges, b.ranges) == ([None], [])


@pytest.mark.parametrize("how", STOPPING)
@pytest.mark.parametrize("direct", [True, False])
async def test_a_range_is_continued(how: str, direct: bool) -> None:
    data = content(2 * LARGE)
    async with (
        peers(data, STOPPING[how], honest) as [a, b],
        pulling([a.holder, b.holder], direct=direct) as host,
    ):
        pulled = await host.get(Digest.of(data), "bytes=1000-999999")
        assert (pulled.status, pulled.whole) == (206, True)
        assert pulled.headers["content-range"] == f"bytes 1000-999999/{2 * LARGE}"
        assert pulled.body == data[1000:1_000_000]
        assert a.ranges == ["bytes=1000-999999"]
        if how != "slow":
            assert b.ranges == [f"bytes={1000 + STOP}-999999"]


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("byte_range", ["bytes=0-", "bytes=5000-", "bytes=5000-9000", "bytes=-3000", "bytes=0-4"])
async def test_ranges_are_relayed(byte_range: str, size: int) -> None:
    data = content(size)
    async with peers(data, in_turn(_ranges)) as [a], pulling([a.holder]) as host:
        pulled = await host.get(Digest.of(data), byte_range)
        first, last = byte_range.removeprefix("bytes=").split("-")
        start = int(first) if first else size - int(last)
        stop = int(last) + 1 if first and last else size
        assert pulled.status == (200 if byte_range == "bytes=0-" else 206)
        assert pulled.body == data[start:stop]


async def _ranges(exchange: Exchange) -> None:
    """Be honest, also for `bytes=-n`."""
    byte_range, size = exchange.request, len(exchange.content)
    if byte_range.range and byte_range.range.startswith("bytes=-"):
        start = size - int(byte_range.range.removeprefix("bytes=-"))
        byte_range.headers["range"] = f"bytes={start}-{size - 1}"
    await honest(exchange)


async def test_a_range_after_the_end_is_not_found() -> None:
    data = content(LARGE)
    async with peers(data, answers(416)) as [a], pulling([a.holder]) as host:
        assert (await host.get(Digest.of(data), f"bytes={LARGE}-")).status == 404


@pytest.mark.parametrize(
    "bad", [answers(404), answers(503), breaks_connections, silent, ignores_range, other_range, other_size, too_large]
)
async def test_a_second_holder_that_fails_is_passed_over(bad: Script) -> None:
    data = content(LARGE)
    scripts = (short_after(STOP), bad, honest)
    async with peers(data, *scripts) as those, pulling([each.holder for each in those]) as host:
        pulled = await host.get(Digest.of(data))
        assert (pulled.status, pulled.body) == (200, data)
        [_, second, third] = those
        assert set(second.ranges) == set(third.ranges) == {f"bytes={STOP}-{LARGE - 1}"}


@pytest.mark.parametrize("path", DATA_PATHS)
async def test_each_of_several_holders_sends_a_part(path: str) -> None:
    data = content(LARGE)
    scripts = [short_after(100_000)] * 4 + [honest]
    async with peers(data, *scripts) as those, pulling([each.holder for each in those], **DATA_PATHS[path]) as host:
        pulled = await host.get(Digest.of(data))
        assert pulled.body == data
        assert [each.ranges for each in those[1:]] == [[f"bytes={n}00000-{LARGE - 1}"] for n in (1, 2, 3, 4)]


async def test_restarts_are_limited() -> None:
    data = content(LARGE)
    scripts = [short_after(50_000)] * 6
    async with peers(data, *scripts) as those, pulling([each.holder for each in those], restarts=3) as host:
        pulled = await host.get(Digest.of(data))
        assert pulled.status == 200
        assert not pulled.whole
        assert sum(len(each.requests) for each in those) == 3


async def test_a_200_to_a_range_from_byte_0_on_is_accepted() -> None:
    data = content(LARGE)
    async with peers(data, ignores_range) as [a], pulling([a.holder]) as host:
        pulled = await host.get(Digest.of(data), "bytes=0-")
        assert (pulled.status, pulled.body) == (200, data)


async def test_a_holder_that_ignores_ranges_can_still_send_the_whole() -> None:
    data = content(LARGE)
    async with peers(data, ignores_range) as [a], pulling([a.holder]) as host:
        assert (await host.get(Digest.of(data), "bytes=7-")).status == 404
        assert (await host.get(Digest.of(data))).body == data


@pytest.mark.parametrize("path", DATA_PATHS)
async def test_without_holders_the_transfer_is_cut_and_the_next_request_gets_404(path: str) -> None:
    data = content(LARGE)
    async with (
        peers(data, silent_after(STOP), short_after(STOP)) as those,
        pulling([each.holder for each in those], **DATA_PATHS[path]) as host,
    ):
        digest = Digest.of(data)
        pulled = await host.get(digest)
        assert pulled.status == 200
        assert not pulled.whole
        assert pulled.body == data[: 2 * STOP]  # the withheld bytes are passed on
        again = await host.get(digest, f"bytes={2 * STOP}-")
        assert again.status == 404
        assert sum(len(each.requests) for each in those) == 2


async def test_the_router_gets_the_failed_peers_and_the_offset() -> None:
    data = content(LARGE)
    async with peers(data, short_after(STOP), honest) as [a, b]:
        router = FixedRouter(a.holder, b.holder)
        async with pulling(router) as host:
            await host.get(Digest.of(data))
        first, second = router.wants
        assert (first.key, first.offset, dict(first.failed)) == (Digest.of(data), 0, {})
        assert (second.offset, dict(second.failed)) == (STOP, {"a": "broken"})
