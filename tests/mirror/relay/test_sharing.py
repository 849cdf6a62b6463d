"""What this host relays to its runtime, it serves to other hosts while it arrives: through the peer door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from tests.mirror.metrics.test_metrics import scrape
from tests.mirror.relay.peers import Exchange, honest, peers
from tests.mirror.relay.pulling import LARGE, SHORT, AdvisingRouter, FixedRouter, content, manifest_with, path_of
from tests.support.plain_http import plain_client
from tests.support.ports import free_port
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Digest, Feed, Holder, Limits, Mirror, Peer, Router, Upstream, serve
from peili.mirror.peer_api.keys import key_path
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

IN_FLIGHT = {"Peili-In-Flight": "1"}
PIECE = 50_000


class Valve:
    """A script that sends as many bytes of each response as `open_to` says."""

    def __init__(self, **headers: str) -> None:
        self.limit = 0
        self._headers = headers
        self._opened = asyncio.Event()

    def open_to(self, limit: int) -> None:
        self.limit = limit
        self._opened.set()

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.head(200, **self._headers)
        body, sent = exchange.body, 0
        while sent < len(body):
            self._opened.clear()
            if sent < self.limit:
                await exchange.send(body[sent : min(self.limit, len(body))])
                sent = min(self.limit, len(body))
            else:
                await self._opened.wait()


@dataclass
class Reading:
    """A body that is read in the background. `is_whole` is None until it has ended."""

    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    body: bytes = b""
    is_whole: bool | None = None

    async def run(self, client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> None:
        async with client.stream("GET", path, headers=headers) as response:
            self.status, self.headers = response.status_code, response.headers
            try:
                async for piece in response.aiter_raw():
                    self.body += piece
            except (httpx.RemoteProtocolError, httpx.ReadError):
                self.is_whole = False
            else:
                self.is_whole = True


class SharingHost:
    """A served mirror, with clients of its doors: its runtime, and another host."""

    def __init__(self, mirror: Mirror, store: MemoryStore, local: httpx.AsyncClient, peer: httpx.AsyncClient) -> None:
        self.mirror = mirror
        self.store = store
        self._local = local
        self.peer = peer
        self._tasks: list[asyncio.Task[None]] = []

    def pull(self, digest: Digest, kind: str = "blobs", **headers: str) -> tuple[Reading, asyncio.Task[None]]:
        """Let the runtime request content."""
        reading = Reading()
        task = asyncio.create_task(reading.run(self._local, path_of(digest, kind), headers))
        self._tasks.append(task)
        return reading, task

    def read(self, digest: Digest, kind: str = "blobs", **headers: str) -> tuple[Reading, asyncio.Task[None]]:
        """Let the other host request content in flight."""
        reading = Reading()
        task = asyncio.create_task(reading.run(self.peer, path_of(digest, kind), {**IN_FLIGHT, **headers}))
        self._tasks.append(task)
        return reading, task

    @property
    def feeder(self) -> Holder:
        """This host as a holder in flight."""
        return Holder(Peer(self.mirror.identity.id, (str(self.peer.base_url),)), complete=False)

    async def state(self, digest: Digest) -> httpx.Response:
        """Ask out of band how the content arrives."""
        return await self.peer.head(key_path(digest), headers=IN_FLIGHT)

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Members(StaticRouter):
    """A router that answers other hosts, and takes its advice from another router."""

    def __init__(self, advice: Router) -> None:
        super().__init__([])
        self._advice = advice
        self.acquire = advice.acquire  # type: ignore[method-assign]
        self.lookup = advice.lookup  # type: ignore[method-assign]


class _BlindStore(MemoryStore):
    """Does not show what is arriving."""

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Any:
        return await super().open(digest)

    @override
    def shows_in_flight(self) -> bool:
        return False


@asynccontextmanager
async def sharing(
    router: Router, *, identity: str = "me", store: MemoryStore | None = None, verify: bool = True, **limits: Any
) -> AsyncGenerator[SharingHost]:
    store = store or MemoryStore()
    all_limits: dict[str, Any] = {
        **SHORT,
        "stall_timeout": 30.0,
        "first_byte_timeout": 30.0,
        "rate_window": 60.0,
        **limits,
    }
    mirror = Mirror(store, _Members(router), identity=identity, verify=verify, limits=Limits(**all_limits))
    async with (
        mirror,
        serve(mirror, local="127.0.0.1:0", peer=f"127.0.0.1:{free_port()}") as serving,
        plain_client(base_url=f"http://{serving.local_addresses[0]}", trust_env=False, timeout=90) as local,
        plain_client(base_url=f"http://{serving.peer_addresses[0]}", trust_env=False, timeout=90) as peer,
    ):
        host = SharingHost(mirror, store, local, peer)
        try:
            yield host
        finally:
            await host.aclose()


@pytest.mark.parametrize("verify", [True, False], ids=["hashed", "spliced"])
async def test_another_host_reads_what_is_relayed(verify: bool) -> None:
    data = content(LARGE)
    digest = Digest.of(data)
    valve = Valve()
    async with peers(data, valve) as [a], sharing(FixedRouter(a.holder), store=_BlindStore(), verify=verify) as host:
        pulled, pulling = host.pull(digest)
        await until(lambda: a.requests)
        child, reading = host.read(digest)
        await until(lambda: uploads(host) == 1)
        while valve.limit < len(data):
            valve.open_to(min(valve.limit + PIECE, len(data)))
            await until(lambda: len(child.body) == valve.limit)
        await asyncio.gather(pulling, reading)
        assert (child.body, child.is_whole) == (data, True)
        assert (pulled.body, pulled.is_whole) == (data, True)
        assert len(a.requests) == 1
        assert child.headers["Peili-Complete"] == "false"
        assert child.headers["Peili-Path"] == "me, a"
        assert child.headers["Peili-Waiting"] == "a"


async def test_the_state_is_told_out_of_band() -> None:
    data = content(LARGE)
    digest = Digest.of(data)
    valve = Valve()
    async with peers(data, valve) as [a], sharing(FixedRouter(a.holder)) as host:
        assert (await host.state(digest)).status_code == 404
        pulled, pulling = host.pull(digest)
        await until(lambda: a.requests)
        state = await host.state(digest)
        assert state.status_code == 200
        assert (state.headers["Peili-Available"], state.headers["Peili-Path"]) == ("0", "me")
        assert "Peili-Size" not in state.headers
        child, _ = host.read(digest)
        valve.open_to(300_000)
        await until(lambda: len(child.body) == 300_000)
        state = await host.state(digest)
        names = ("Docker-Content-Digest", "Peili-Complete", "Peili-Available", "Peili-Size", "Peili-Waiting")
        assert [state.headers[name] for name in names] == [digest, "false", "300000", str(LARGE), "a"]
        assert (await host.peer.head(key_path(digest))).status_code == 404, "without the header, it is not there"
        valve.open_to(LARGE)
        await pulling
        assert pulled.body == data


async def test_a_request_before_the_first_byte_is_held() -> None:
    data = content(LARGE)
    digest = Digest.of(data)
    valve = Valve()
    async with peers(data, valve) as [a], sharing(FixedRouter(a.holder)) as host:
        _, pulling = host.pull(digest)
        await until(lambda: a.requests)
        child, reading = host.read(digest, Range=f"bytes={LARGE - 1000}-")
        await until(lambda: uploads(host) == 1)
        valve.open_to(LARGE)
        await asyncio.gather(pulling, reading)
        assert (child.status, child.body) == (206, data[-1000:])


async def test_what_the_runtime_fetches_from_upstream_is_expected() -> None:
    data = content(LARGE)
    digest = Digest.of(data)
    async with sharing(AdvisingRouter(Upstream())) as host:
        pulled, pulling = host.pull(digest)
        await pulling
        assert pulled.status == 404
        state = await host.state(digest)
        assert (state.status_code, state.headers["Peili-Waiting"], state.headers["Peili-Path"]) == (
            200,
            "upstream",
            "me",
        )
        child, reading = host.read(digest)
        await until(lambda: uploads(host) == 1)
        ingest = host.store.begin(digest, len(data))
        ingest.write(data[:1000])
        await until(lambda: len(child.body) == 1000)
        assert (child.headers["Peili-Waiting"], child.headers["Peili-Path"]) == ("upstream", "me")
        ingest.write(data[1000:])
        ingest.commit()
        await reading
        assert child.body == data


def uploads(host: SharingHost) -> float:
    """Return how many uploads run."""
    return scrape(host.mirror)("peili_uploads")


async def test_nothing_is_expected_for_long() -> None:
    digest = Digest.of(b"never")
    async with sharing(AdvisingRouter(Upstream()), claim_timeout=0.2) as host:
        await host.pull(digest)[1]
        child, reading = host.read(digest)
        await reading
        assert child.status == 404
        assert (await host.state(digest)).status_code == 404


async def test_a_store_that_shows_nothing_has_nothing_to_expect() -> None:
    digest = Digest.of(b"never")
    async with sharing(AdvisingRouter(Upstream()), store=_BlindStore(), claim_timeout=600.0) as host:
        await host.pull(digest)[1]
        assert (await host.state(digest)).status_code == 404
        child, reading = host.read(digest)
        await reading
        assert child.status == 404


@pytest.mark.parametrize("is_gone", [False, True], ids=["the peer breaks off", "the runtime disconnects"])
async def test_a_cut_transfer_is_continued_upstream(is_gone: bool) -> None:
    data = content(LARGE)
    digest = Digest.of(data)
    valve = Valve()

    async def breaks_off(exchange: Exchange) -> None:
        await until(lambda: valve.limit >= 1)
        await exchange.head()
        await exchange.send(data[:200_000])
        if is_gone:
            await exchange.silence()
        await until(lambda: valve.limit >= 2)
        exchange.close()

    async with peers(data, breaks_off) as [a], sharing(FixedRouter(a.holder)) as host:
        pulled, pulling = host.pull(digest)
        await until(lambda: a.requests)
        child, reading = host.read(digest)
        await until(lambda: uploads(host) == 1)
        valve.open_to(1)
        await until(lambda: len(child.body) == 200_000)
        if is_gone:
            pulling.cancel()
        else:
            valve.open_to(2)
            await pulling
            assert pulled.is_whole is False
        ingest = host.store.begin(digest, len(data))
        ingest.write(data)
        await reading
        assert (child.body, child.is_whole) == (data, True)


async def test_a_slow_host_does_not_slow_the_runtime_down() -> None:
    data = content(4_000_000)
    digest = Digest.of(data)
    valve = Valve()
    async with (
        peers(data, valve) as [a],
        sharing(FixedRouter(a.holder), ring_size=64 * 1024, claim_timeout=600.0) as host,
    ):
        ingest = host.store.begin(digest, len(data))
        pulled, pulling = host.pull(digest)
        await until(lambda: a.requests)
        valve.open_to(1000)
        async with host.peer.stream("GET", path_of(digest, "blobs"), headers=IN_FLIGHT) as response:
            valve.open_to(len(data))
            await pulling
            assert (pulled.body, pulled.is_whole) == (data, True)
            ingest.write(data)
            ingest.commit()
            assert await response.aread() == data


@pytest.mark.parametrize("kind", ["blobs", "manifests"])
async def test_small_content_is_shared_while_it_is_collected(kind: str) -> None:
    data = manifest_with(Digest.of(b"layer"), 5)
    digest = Digest.of(data)
    valve = Valve()
    async with peers(data, valve) as [a], sharing(FixedRouter(a.holder), store=_BlindStore()) as host:
        pulled, pulling = host.pull(digest, kind)
        await until(lambda: a.requests)
        child, reading = host.read(digest, kind)
        await until(lambda: uploads(host) == 1)
        valve.open_to(100)
        if kind == "blobs":
            await until(lambda: len(child.body) == 100)
            assert not pulled.body, "it is verified before the runtime gets it"
        valve.open_to(len(data))
        await asyncio.gather(pulling, reading)
        assert (child.status, child.body, pulled.body) == (200, data, data)
        if kind == "manifests":
            assert child.headers["Content-Type"] == "application/vnd.oci.image.manifest.v1+json"


async def test_wrong_bytes_are_not_sent_on_after_they_are_known() -> None:
    data = content(20_000)
    digest = Digest.of(data)
    wrong, right = bytes(len(data)), Valve()

    async def liar(exchange: Exchange) -> None:
        await until(lambda: uploads(host) == 1)
        await exchange.head(docker_content_digest=digest)
        await exchange.send(wrong[:10_000])
        await until(lambda: child.body)
        await exchange.send(wrong[10_000:])

    child: Reading
    async with peers(data, liar, right) as [a, b], sharing(FixedRouter(a.holder, b.holder)) as host:
        pulled, pulling = host.pull(digest)
        await until(lambda: a.requests)
        child, reading = host.read(digest)
        await reading
        assert child.is_whole is False
        await until(lambda: b.requests)
        again, rereading = host.read(digest)
        right.open_to(len(data))
        await asyncio.gather(pulling, rereading)
        assert (pulled.body, again.body) == (data, data)


async def test_bytes_that_left_the_memory_and_are_shown_by_nobody_are_not_there() -> None:
    data = content(LARGE)
    digest = Digest.of(data)
    valve = Valve()
    async with (
        peers(data, valve) as [a],
        sharing(FixedRouter(a.holder), store=_BlindStore(), ring_size=64 * 1024) as host,
    ):
        _, pulling = host.pull(digest)
        await until(lambda: a.requests)
        child, _ = host.read(digest)
        await until(lambda: uploads(host) == 1)
        while valve.limit < 400_000:
            valve.open_to(valve.limit + PIECE)
            await until(lambda: len(child.body) == valve.limit)
        late, reading = host.read(digest)
        await reading
        assert late.status == 404
        last, last_reading = host.read(digest, Range="bytes=390000-")
        await until(lambda: last.status)
        while valve.limit < LARGE:
            valve.open_to(min(valve.limit + PIECE, LARGE))
            await until(lambda: len(last.body) == valve.limit - 390_000)
        await asyncio.gather(pulling, last_reading)
        assert last.body == data[390_000:]


async def test_the_local_door_does_not_serve_its_own_copy() -> None:
    data = content(LARGE)
    digest = Digest.of(data)
    valve = Valve()
    async with peers(data, valve, honest) as [a, _], sharing(FixedRouter(a.holder)) as host:
        host.pull(digest)
        await until(lambda: a.requests)
        second, _ = host.pull(digest)
        await until(lambda: len(a.requests) == 2)
        assert not second.status


async def test_two_requests_of_the_runtime_share_one_transfer() -> None:
    data = content(20_000)
    digest = Digest.of(data)
    valve = Valve()
    async with peers(data, valve) as [a], sharing(FixedRouter(a.holder), store=_BlindStore()) as host:
        first, pulling = host.pull(digest)
        await until(lambda: a.requests)
        second, pulling_too = host.pull(digest)
        await until(lambda: transfers(host) == 2)
        valve.open_to(len(data))
        await asyncio.gather(pulling, pulling_too)
        assert (first.body, second.body) == (data, data)
        assert len(a.requests) == 1


def transfers(host: SharingHost) -> float:
    """Return how many transfers are under way."""
    return scrape(host.mirror)("peili_transfers")


async def test_a_transfer_that_stands_still_is_shared_only_for_a_moment() -> None:
    data = content(20_000)
    digest = Digest.of(data)
    valve = Valve()
    valve.open_to(10_000)
    async with peers(data, valve, honest) as [a, b], sharing(FixedRouter(a.holder, b.holder)) as host:
        first, pulling = host.pull(digest)
        await until(lambda: a.requests)
        second, pulling_too = host.pull(digest)
        a.script = honest
        await pulling_too
        assert (first.body, second.body) == (b"", data)
        valve.open_to(len(data))
        await pulling
        assert first.body == data


async def test_if_the_first_runtime_disconnects_the_second_request_continues() -> None:
    data = content(20_000)
    digest = Digest.of(data)
    valve = Valve()
    valve.open_to(10_000)
    async with peers(data, valve) as [a], sharing(FixedRouter(a.holder)) as host:
        _, pulling = host.pull(digest)
        await until(lambda: a.requests)
        second, pulling_too = host.pull(digest)
        await until(lambda: transfers(host) == 2)
        pulling.cancel()
        a.script = honest
        await pulling_too
        assert second.body == data


async def test_two_requests_share_what_arrives_from_a_feeder() -> None:
    data = content(LARGE)
    digest = Digest.of(data)
    valve = Valve(peili_complete="false", peili_available="0", peili_path="a, root")
    async with peers(data, valve) as [a]:
        feeder = replace(a.holder, complete=False)
        async with sharing(AdvisingRouter(Feed((feeder,)))) as host:
            first, pulling = host.pull(digest)
            await until(lambda: a.requests)
            valve.open_to(1000)
            second, pulling_too = host.pull(digest)
            child, reading = host.read(digest)
            await until(lambda: second.status and child.status)
            valve.open_to(len(data))
            await asyncio.gather(pulling, pulling_too, reading)
        assert (first.body, second.body, child.body) == (data, data, data)
        assert [request.method for request in a.requests].count("GET") == 1
        assert child.headers["Peili-Path"] == "me, a, root"


async def test_bytes_stream_through_a_chain_of_hosts() -> None:
    data = content(LARGE)
    digest = Digest.of(data)
    valve = Valve(peili_complete="false", peili_available="0", peili_path="a, root")
    async with AsyncExitStack() as stack:
        [a] = await stack.enter_async_context(peers(data, valve))
        feeder, hosts, pulls = replace(a.holder, complete=False), list[SharingHost](), list[Reading]()
        for name in ("b", "c", "d"):
            router = AdvisingRouter(Feed((feeder,)))
            hosts.append(await stack.enter_async_context(sharing(router, identity=name, store=_BlindStore())))
            feeder = hosts[-1].feeder
        valve.open_to(1000)
        for host in hosts:
            pulls.append(host.pull(digest)[0])
            await until(lambda: transfers(host) == 1)  # noqa: B023 - it is awaited at once
        child, reading = hosts[-1].read(digest)
        while valve.limit < len(data):
            valve.open_to(min(valve.limit + PIECE, len(data)))
            await until(lambda: len(child.body) == valve.limit)
        await reading
        await until(lambda: all(pull.is_whole for pull in pulls))
        assert [child.body, *(pull.body for pull in pulls)] == [data] * 4
        assert child.headers["Peili-Path"] == "d, c, b, a, root"
        assert child.headers["Peili-Waiting"] == "c"
