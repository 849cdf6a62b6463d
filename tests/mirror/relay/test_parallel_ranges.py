"""A runtime that fetches one blob as parallel, open-ended ranges, and closes each after a part of it."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from tests.mirror.relay.peers import Exchange, honest, peers, wrong_bytes
from tests.mirror.relay.pulling import LARGE, MIB, Host, content, path_of, pulling, until

from peili.mirror import Digest, Mirror, serve
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


async def _part(host: Host, digest: Digest, first: int, count: int, go: asyncio.Event) -> tuple[int, bytes]:
    """The status, and `count` bytes from `first` on; the answer is held until `go`, then closed."""
    body = bytearray()
    headers = {"Range": f"bytes={first}-"}
    async with (
        host.client.stream("GET", path_of(digest), headers=headers) as response,
    ):
        async for piece in response.aiter_raw():
            body += piece
            if len(body) >= count:
                break
        await go.wait()
    return response.status_code, bytes(body[:count])


class _Bounded:
    """A peer that answers `most` requests at a time, as a holder does, and others with 429."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.under_way = 0
        self.refused = 0

    async def __call__(self, exchange: Exchange) -> None:
        if self.under_way >= self.most:
            self.refused += 1
            await exchange.head(429, content_length="0", content_range="")
            return
        self.under_way += 1
        try:
            await honest(exchange)
        finally:
            self.under_way -= 1


@pytest.mark.parametrize("most", [16, 2])
async def test_no_part_is_refused_because_the_holder_was_asked_for_too_much(most: int) -> None:
    """With 2, the holder has fewer places than this host believes: parts wait for each other then."""
    data, go, bound = content(24 * MIB), asyncio.Event(), _Bounded(most)
    async with peers(data, bound) as [a], pulling([a.holder]) as host:
        host.client.timeout = httpx.Timeout(90)
        parts = [asyncio.create_task(_part(host, Digest.of(data), n * MIB, MIB // 2, go)) for n in range(1, 21)]
        await asyncio.sleep(0)
        await until(lambda: bound.refused or len(a.requests) >= 20)
        go.set()
        for n, each in enumerate(parts, 1):
            assert await each == (206, data[n * MIB : n * MIB + MIB // 2])


async def test_a_first_request_is_refused_at_once_where_the_holder_is_busy() -> None:
    data = content(LARGE)
    async with peers(data, _Bounded(0)) as [a], pulling([a.holder]) as host:
        assert (await host.get(Digest.of(data))).status == 404
        assert (await host.get(Digest.of(data), "bytes=0-")).status == 404
        assert len(a.requests) == 2


async def test_a_holder_sends_little_beyond_what_the_runtime_reads() -> None:
    """One real holder, whose door counts what it sends."""
    data, store = content(32 * MIB), MemoryStore()
    store.add(data)
    holder = Mirror(store, MemoryRouter())
    async with holder, serve(holder, local="127.0.0.1:0", peer="127.0.0.1:0") as serving, peers(data, honest) as [a]:
        a.urls = (f"http://{serving.peer_addresses[0]}",)
        async with pulling([a.holder]) as host:
            read = 0
            go = asyncio.Event()
            go.set()
            for n in range(1, 17):
                status, body = await _part(host, Digest.of(data), n * MIB, MIB, go)
                assert (status, body) == (206, data[n * MIB : (n + 1) * MIB])
                read += len(body)
        sent = holder.metrics.sent.value("peer", "store")
    assert read <= sent < 2 * read, f"{sent} bytes sent for {read} read"


@pytest.mark.parametrize("verify", [True, False])
async def test_from_the_first_byte_on_is_one_stream_without_a_length(verify: bool) -> None:
    """containerd 2.1.0 to 2.1.4 fetch in parallel after any answer with a length; no part could be verified."""
    data = content(4 * MIB)
    async with peers(data, honest) as [a], pulling([a.holder], verify=verify) as host:
        pulled = await host.get(Digest.of(data), "bytes=0-")
        assert (pulled.status, pulled.whole, pulled.body) == (200, True, data)
        assert "content-length" not in pulled.headers
        assert _unverified(host) == 0
        assert (await host.get(Digest.of(data))).headers["content-length"] == str(len(data))


async def test_parts_of_a_runtime_that_has_their_beginning_are_known_by_each_other() -> None:
    """Its ingest keeps up with the parts, so that each of them looks like a resumed pull."""
    data, store, go = content(8 * MIB), MemoryStore(), asyncio.Event()
    digest = Digest.of(data)
    store.begin(digest, len(data)).write(data[: 6 * MIB])
    async with peers(data, honest) as [a], pulling([a.holder], store=store) as host:
        held = asyncio.create_task(_part(host, digest, MIB, MIB // 2, go))
        await until(lambda: a.ranges)
        asked = len(a.ranges)
        second = asyncio.create_task(_part(host, digest, 2 * MIB, MIB // 2, go))
        await until(lambda: len(a.ranges) > asked)
        assert all(each and not each.endswith("-") for each in a.ranges[asked:]), "asked for in windows"
        go.set()
        assert await held == (206, data[MIB : MIB + MIB // 2])
        assert await second == (206, data[2 * MIB : 2 * MIB + MIB // 2])
        assert _unverified(host) > 0


async def test_a_resumed_range_comes_without_a_length_and_is_verified() -> None:
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


async def test_what_can_not_be_verified_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Each is, and the first of those that follow each other for an operator to see."""
    caplog.set_level("DEBUG")
    data = content(4 * MIB)
    async with peers(data, honest) as [a], pulling([a.holder]) as host:
        pulled = await host.get(Digest.of(data), f"bytes={MIB}-")
        assert (pulled.status, pulled.body) == (206, data[MIB:])
        assert pulled.headers["content-length"] == str(3 * MIB)
        for _ in range(3):
            assert (await host.get(Digest.of(data), f"bytes=0-{2 * MIB}")).status == 206
        assert _unverified(host) == 4
    told = [each.levelname for each in caplog.records if "passed on unverified" in each.getMessage()]
    assert told == ["INFO", "DEBUG", "DEBUG", "DEBUG"]


def _unverified(host: Host) -> float:
    return sum(host.mirror.metrics.unverified.value(reason) for reason in ("part", "beginning"))
