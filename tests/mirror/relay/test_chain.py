"""A chain of real hosts: what the first one's runtime fetches streams through all of them while it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
from tests.mirror.relay.peers import Exchange, SaysReceived, ScriptedPeer, listening
from tests.mirror.relay.pulling import MIB, content, path_of
from tests.support.plain_http import plain_client
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Digest, Feed, Holder, Limits, Mirror, Peer, Upstream, Wait, Want, serve
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryIngest, MemoryStore

pytestmark = pytest.mark.anyio

DATA = content(3 * MIB)
DIGEST = Digest.of(DATA)


class ChainRouter(StaticRouter):
    """Knows all hosts, and answers with a fixed feeder, or with Upstream if that has failed."""

    def __init__(self) -> None:
        super().__init__([])
        self.feeder: Peer | None = None
        self.known: list[Peer] = []
        self.wants: list[Want] = []

    @override
    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        self.wants.append(want)
        if self.feeder is None or self.feeder.id in want.failed or not want.accepts_in_flight:
            return Upstream()
        return Feed((Holder(self.feeder, complete=False),))

    @override
    def peers(self) -> list[Peer]:
        return self.known


@dataclass
class ChainHost:
    """One host of the chain."""

    mirror: Mirror
    store: MemoryStore
    router: ChainRouter
    local: httpx.AsyncClient
    peer: Peer

    async def pull(self) -> tuple[int, bytes, bool]:
        """Return the status, what the runtime receives, and whether it is whole."""
        body = b""
        async with self.local.stream("GET", path_of(DIGEST)) as response:
            try:
                async for piece in response.aiter_raw():
                    body += piece
            except (httpx.RemoteProtocolError, httpx.ReadError):
                return response.status_code, body, False
        return response.status_code, body, True


@asynccontextmanager
async def chain(length: int) -> AsyncGenerator[tuple[list[ChainHost], MemoryIngest]]:
    """Serve hosts, each of which feeds the next one. The first one's runtime fetches the content."""
    async with AsyncExitStack() as stack:
        hosts = list[ChainHost]()
        for name in "abcdefgh"[:length]:
            store, router = MemoryStore(), ChainRouter()
            limits = Limits(hedge_delay=0.05, verify_ahead=64 * 1024, drain_timeout=0.1)
            mirror = await stack.enter_async_context(Mirror(store, router, identity=name, limits=limits))
            serving = await stack.enter_async_context(serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0"))
            local = plain_client(base_url=f"http://{serving.local_addresses[0]}", trust_env=False, timeout=60)
            await stack.enter_async_context(local)
            peer = Peer(name, (f"http://{serving.peer_addresses[0]}",))
            router.feeder = hosts[-1].peer if hosts else None
            hosts.append(ChainHost(mirror, store, router, local, peer))
        for each in hosts:
            each.router.known = [other.peer for other in hosts if other is not each]
        yield hosts, hosts[0].store.begin(DIGEST, len(DATA))


async def test_content_streams_through_the_chain_while_it_arrives() -> None:
    async with chain(4) as (hosts, ingest), asyncio.TaskGroup() as tasks:
        pulls = [tasks.create_task(host.pull()) for host in hosts[1:]]
        ingest.write(DATA[:MIB])
        await until(lambda: len(hosts[-1].router.wants) == 1)
        ingest.write(DATA[MIB:])
        ingest.commit()
        for pull in pulls:
            assert await pull == (200, DATA, True)
        assert [len(host.router.wants) for host in hosts] == [0, 1, 1, 1]


async def test_hosts_that_feed_each_other_find_out() -> None:
    async with chain(3) as (hosts, _), asyncio.TaskGroup() as tasks:
        hosts[1].router.feeder = hosts[2].peer
        pulls = [tasks.create_task(host.pull()) for host in hosts[1:]]
        statuses = [(await pull)[0] for pull in pulls]
        assert statuses == [404, 404]
        reasons = {reason for host in hosts[1:] for want in host.router.wants for reason in want.failed.values()}
        assert "circular" in reasons
        assert reasons <= {"circular", "starving"}


async def test_a_changed_byte_is_traced_by_all_hosts_behind_it(caplog: pytest.LogCaptureFixture) -> None:
    """Only the host at the link accuses its feeder. The hosts behind it accuse nobody."""
    async with chain(4) as (hosts, ingest), AsyncExitStack() as stack:
        changing = _Changing(hosts[0].peer)
        changer = await stack.enter_async_context(listening(ScriptedPeer("a", DATA, changing)))
        hosts[1].router.feeder = changer.peer
        ingest.write(DATA)
        pulls = [asyncio.create_task(host.pull()) for host in hosts[1:]]
        for pull in pulls:
            _, body, is_whole = await pull
            assert not is_whole
            assert len(body) < len(DATA)
        await until(lambda: caplog.text.count(f"{DIGEST}: a wrong byte entered between a and b") == 3)
        await until(lambda: [want for want in hosts[1].router.wants if want.failed == {"a": "wrong"}])
        for host in hosts[2:]:
            assert not [want for want in host.router.wants if "wrong" in want.failed.values()]
        hosts[3].router.wants.clear()
        await hosts[3].pull()
        assert hosts[3].router.wants[0].accepts_in_flight
        assert set(hosts[3].router.wants[0].failed) == {"a", "b"}


class _Changing(SaysReceived):
    """Passes on requests to `peer`, and changes a byte in what it answers."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    @override
    async def __call__(self, exchange: Exchange) -> None:
        request = exchange.request
        async with plain_client(base_url=self._peer.urls[0], trust_env=False, timeout=60) as client:
            headers = {name: value for name, value in request.headers.items() if name.startswith("peili")}
            response = await client.request(request.method, request.path, headers=headers)
        body = response.content
        if request.path.startswith("/v2/"):
            body = body[:MIB] + bytes([body[MIB] ^ 1]) + body[MIB + 1 :] if body else body
        fields = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
        await exchange.send(f"HTTP/1.1 {response.status_code} x\r\n{fields}\r\n".encode() + body)
