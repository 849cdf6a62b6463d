"""A runtime that fetches one blob as parallel open-ended ranges, and closes each response after a part of it."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from tests.mirror.relay.peers import Exchange, honest, peers, wrong_bytes
from tests.mirror.relay.pulling import LARGE, MIB, Host, content, path_of, pulling
from tests.support.waiting import until

from peili.mirror import Digest, Mirror, serve
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


async def _part(host: Host, digest: Digest, first: int, count: int, close_now: asyncio.Event) -> tuple[int, bytes]:
    """Return the status, and `count` bytes from `first` on. The response is closed at `close_now`."""
    body = bytearray()
    headers = {"Range": f"bytes={first}-"}
    async with (
        host.client.stream("GET", path_of(digest), headers=headers) as response,
    ):
        async for piece in response.aiter_raw():
            body += piece
            if len(body) >= count:
                break
        await close_now.wait()
    return response.status_code, bytes(body[:count])


class _LimitedPeer:
    """A peer that serves `max_requests` at a time, like a real holder, and answers others with 429."""

    def __init__(self, max_requests: int) -> None:
        self.max_requests = max_requests
        self.under_way = 0
        self.refused = 0

    async def __call__(self, exchange: Exchange) -> None:
        if self.under_way >= self.max_requests:
            self.refused += 1
            await exchange.head(429, content_length="0", content_range="")
            return
        self.under_way += 1
        try:
            await honest(exchange)
        finally:
            self.under_way -= 1


@pytest.mark.parametrize("max_requests", [16, 2])
async def test_parts_wait_for_each_other_instead_of_failing(max_requests: int) -> None:
    """With 2, the holder serves fewer requests than this host expects."""
    data, close_now, bound = content(24 * MIB), asyncio.Event(), _LimitedPeer(max_requests)
    async with peers(data, bound) as [a], pulling([a.holder]) as host:
        host.client.timeout = httpx.Timeout(90)
        parts = [asyncio.create_task(_part(host, Digest.of(data), n * MIB, MIB // 2, close_now)) for n in range(1, 21)]
        await asyncio.sleep(0)
        await until(lambda: bound.refused or len(a.requests) >= 20)
        close_now.set()
        for n, each in enumerate(parts, 1):
            assert await each == (206, data[n * MIB : n * MIB + MIB // 2])


async def test_the_first_request_fails_at_once_if_the_holder_is_busy() -> None:
    data = content(LARGE)
    async with peers(data, _LimitedPeer(0)) as [a], pulling([a.holder]) as host:
        assert (await host.get(Digest.of(data))).status == 404
        assert (await host.get(Digest.of(data), "bytes=0-")).status == 404
        assert len(a.requests) == 2


async def test_a_holder_sends_little_more_than_the_runtime_reads() -> None:
    """The holder is a real mirror, whose door counts what it sends."""
    data, store = content(32 * MIB), MemoryStore()
    store.add(data)
    holder = Mirror(store, MemoryRouter())
    async with holder, serve(holder, local="127.0.0.1:0", peer="127.0.0.1:0") as serving, peers(data, honest) as [a]:
        a.urls = (f"http://{serving.peer_addresses[0]}",)
        async with pulling([a.holder]) as host:
            read = 0
            close_now = asyncio.Event()
            close_now.set()
            for n in range(1, 17):
                status, body = await _part(host, Digest.of(data), n * MIB, MIB, close_now)
                assert (status, body) == (206, data[n * MIB : (n + 1) * MIB])
                read += len(body)
        sent = holder.metrics.sent.value("peer", "store")
    assert read <= sent < 2 * read, f"{sent} bytes sent for {read} read"


@pytest.mark.parametrize("verify", [True, False])
async def test_a_range_from_byte_0_on_is_one_stream_without_a_length(verify: bool) -> None:
    """containerd 2.1.0 to 2.1.4 fetch in parallel after any response with a length; no part could be verified."""
    data = content(4 * MIB)
    async with peers(data, honest) as [a], pulling([a.holder], verify=verify) as host:
        pulled = await host.get(Digest.of(data), "bytes=0-")
        assert (pulled.status, pulled.whole, pulled.body) == (200, True, data)
        assert "content-length" not in pulled.headers
        assert _unverified(host) == 0
        assert (await host.get(Digest.of(data))).headers["content-length"] == str(len(data))


async def test_parallel_parts_are_recognised_even_if_the_ingest_keeps_up() -> None:
    """Each part then looks like a resumed pull."""
    data, store, close_now = content(8 * MIB), MemoryStore(), asyncio.Event()
    digest = Digest.of(data)
    store.begin(digest, len(data)).write(data[: 6 * MIB])
    async with peers(data, honest) as [a], pulling([a.holder], store=store) as host:
        held = asyncio.create_task(_part(host, digest, MIB, MIB // 2, close_now))
        await until(lambda: a.ranges)
        count = len(a.ranges)
        second = asyncio.create_task(_part(host, digest, 2 * MIB, MIB // 2, close_now))
        await until(lambda: len(a.ranges) > count)
        assert all(each and not each.endswith("-") for each in a.ranges[count:]), "requested in windows"
        close_now.set()
        assert await held == (206, data[MIB : MIB + MIB // 2])
        assert await second == (206, data[2 * MIB : 2 * MIB + MIB // 2])
        assert _unverified(host) > 0


async def test_a_resumed_range_has_no_length_and_is_verified() -> None:
    data, at = content(4 * MIB), 2 * MIB
    digest, store = Digest.of(data), MemoryStore()
    ingest = store.begin(digest, len(data))
    ingest.write(data[:at])
    async with peers(data, wrong_bytes) as [a], pulling([a.holder], store=store) as host:
        pulled = await host.get(digest, f"bytes={at}-")
        assert pulled.status == 206
        assert "content-length" not in pulled.headers
        assert pulled.headers["content-range"] == f"bytes {at}-{len(data) - 1}/{len(data)}"
        assert not pulled.whole
        assert pulled.body == data[at : at + len(pulled.body)]
        assert _unverified(host) == 0
    store = MemoryStore()
    store.begin(digest, len(data)).write(data[:at])
    async with peers(data, honest) as [a], pulling([a.holder], store=store) as host:
        pulled = await host.get(digest, f"bytes={at}-")
        assert (pulled.whole, pulled.body) == (True, data[at:])
        assert "content-length" not in pulled.headers


async def test_unverified_parts_are_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """All are counted. Of parts that follow each other, only the first is logged for the operator."""
    caplog.set_level("DEBUG")
    data = content(4 * MIB)
    async with peers(data, honest) as [a], pulling([a.holder]) as host:
        pulled = await host.get(Digest.of(data), f"bytes={MIB}-")
        assert (pulled.status, pulled.body) == (206, data[MIB:])
        assert pulled.headers["content-length"] == str(3 * MIB)
        for _ in range(3):
            assert (await host.get(Digest.of(data), f"bytes=0-{2 * MIB}")).status == 206
        assert _unverified(host) == 4
    levels = [each.levelname for each in caplog.records if "relayed unverified" in each.getMessage()]
    assert levels == ["INFO", "DEBUG", "DEBUG", "DEBUG"]


def _unverified(host: Host) -> float:
    return sum(host.mirror.metrics.unverified.value(reason) for reason in ("part", "beginning"))
