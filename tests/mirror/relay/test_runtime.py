"""Runtimes that are slow fill no memory and blame no peer. Runtimes that disconnect free everything."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.mirror.relay.peers import Exchange, Script, ScriptedPeer, drips_after, honest, peers, silent, silent_after
from tests.mirror.relay.pulling import DATA_PATHS, LARGE, MIB, NEVER, SMALL, FixedRouter, Host, content, pulling
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Digest, Feed, Holder, Key, Peer, Router, Upstream, Wait, Want

pytestmark = pytest.mark.anyio

BIG = 32 * MIB
"""More than the buffers of all sockets on the way."""


async def _read_all(connection: socket.socket, size: int) -> bytes:
    """Read the body of the response, which has `size` bytes."""
    loop = asyncio.get_running_loop()
    got = bytearray()
    while b"\r\n\r\n" not in got or len(got) - got.index(b"\r\n\r\n") - 4 < size:
        piece = await loop.sock_recv(connection, MIB)
        assert piece, f"the body ends after {len(got)} bytes"
        got += piece
    return bytes(got[got.index(b"\r\n\r\n") + 4 :])


async def _wait_until_blocked(a: ScriptedPeer) -> int:
    """Wait until `a` cannot send any more. Returns how much it has sent."""
    await until(lambda: a.exchanges and a.exchanges[0].sent > 1000)
    async with asyncio.timeout(60):
        while True:
            before = a.exchanges[0].sent
            await asyncio.sleep(0.2)
            if a.exchanges[0].sent == before:
                return before


@pytest.mark.parametrize("path", DATA_PATHS)
async def test_a_slow_runtime_slows_the_peer_and_blames_no_peer(path: str) -> None:
    data = content(BIG)
    async with (
        peers(data, honest, honest) as [a, b],
        pulling([a.holder, b.holder], stall_timeout=0.4, relay_memory=4 * MIB, **DATA_PATHS[path]) as host,
    ):
        connection = await host.ask(Digest.of(data))
        assert await _wait_until_blocked(a) < BIG - 8 * MIB
        await asyncio.sleep(1.2)  # three times the stall timeout, and longer than the rate window
        assert await _read_all(connection, BIG) == data
        assert (len(a.requests), len(b.requests)) == (1, 0)


@pytest.mark.parametrize("path", DATA_PATHS)
async def test_a_runtime_that_reads_nothing_for_too_long_is_disconnected(path: str) -> None:
    data = content(BIG)
    async with peers(data, honest) as [a], pulling([a.holder], reader_timeout=0.3, **DATA_PATHS[path]) as host:
        await host.ask(Digest.of(data))
        await until(lambda: a.requests)
        await until(lambda: a.open == 0)


async def _disconnect(host: Host, data: bytes, a: ScriptedPeer) -> None:
    """Start a transfer, and disconnect. Returns when the connection to `a` is closed."""
    connection = await host.ask(Digest.of(data))
    await until(lambda: a.exchanges and (a.exchanges[0].is_silent or a.exchanges[0].sent > 1000))
    if len(data) == BIG:
        await _wait_until_blocked(a)  # otherwise all bytes may arrive before the disconnect is noticed
    assert a.open == 1
    connection.close()
    await until(lambda: a.open == 0)


@pytest.mark.parametrize(
    ("script", "size"),
    [(silent, SMALL), (silent_after(100_000), LARGE), (drips_after(1000), SMALL), (honest, BIG)],
    ids=["silent", "silent in the middle", "collecting", "sending"],
)
@pytest.mark.parametrize("path", DATA_PATHS)
async def test_a_disconnect_frees_the_peer_at_once(script: Script, size: int, path: str) -> None:
    data = content(size)
    async with (
        peers(data, script) as [a],
        pulling(
            [a.holder], first_byte_timeout=NEVER, stall_timeout=NEVER, rate_window=NEVER, **DATA_PATHS[path]
        ) as host,
    ):
        await _disconnect(host, data, a)


@pytest.mark.parametrize("script", [silent, silent_after(100_000)])
@pytest.mark.parametrize("path", DATA_PATHS)
async def test_transfers_end_when_the_mirror_exits(script: Script, path: str) -> None:
    data = content(LARGE)
    waits: dict[str, Any] = dict.fromkeys(("first_byte_timeout", "stall_timeout", "wait_timeout"), NEVER)
    async with peers(data, script) as [a], asyncio.timeout(90):
        async with pulling([a.holder], **waits, **DATA_PATHS[path]) as host:
            connection = await host.ask(Digest.of(data))
            host.connections.remove(connection)  # the runtime's connection stays open
            await until(lambda: a.requests)
        await until(lambda: a.open == 0)
        connection.close()


class _Hanging(FixedRouter):
    """Never answers. Counts how often it was cancelled."""

    def __init__(self, *, by_lookup: bool) -> None:
        super().__init__()
        self.by_lookup = by_lookup
        self.calls = 0
        self.cancelled = 0

    async def _hang(self) -> None:
        self.calls += 1
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.cancelled += 1

    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        await self._hang()
        yield Holder(Peer("x", ()), complete=True)

    @override
    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        if not self.by_lookup:
            await self._hang()
        return await Router.acquire(self, want)


@pytest.mark.parametrize("by_lookup", [True, False])
async def test_a_disconnect_cancels_the_router(by_lookup: bool) -> None:
    router = _Hanging(by_lookup=by_lookup)
    async with pulling(router, wait_timeout=NEVER, lookup_timeout=NEVER) as host:
        connection = await host.ask(Digest.of(b"x"))
        await until(lambda: router.calls)
        connection.close()
        await until(lambda: router.cancelled)


async def test_the_wait_for_a_hanging_router_is_limited() -> None:
    async with pulling(_Hanging(by_lookup=False), wait_timeout=0.3, lookup_timeout=NEVER) as host:
        assert (await host.get(Digest.of(b"x"))).status == 404
        assert host.mirror.metrics.limited.value("wait_timeout") == 1


@pytest.mark.parametrize("by_lookup", [True, False])
async def test_a_hanging_router_costs_no_more_than_a_lookup(by_lookup: bool, caplog: pytest.LogCaptureFixture) -> None:
    router = _Hanging(by_lookup=by_lookup)
    async with pulling(router, wait_timeout=NEVER, lookup_timeout=0.2) as host:
        assert (await host.get(Digest.of(b"x"))).status == 404
        assert router.cancelled == 1
        assert host.mirror.metrics.limited.value("lookup_timeout") == 1
        assert host.mirror.metrics.lookups.value("failed") == 1
    assert "_Hanging.acquire did not return in time" in caplog.text


async def test_connections_are_kept_for_reuse() -> None:
    contents = [content(SMALL, seed) for seed in range(20)]
    async with peers(b"", honest) as [a], pulling([a.holder]) as host:
        for data in contents:
            a.content = data
            assert (await host.get(Digest.of(data))).body == data
        assert len(a.requests) == 20
        assert a.connections <= 2


async def test_small_blobs_need_no_more_connections_than_concurrent_requests() -> None:
    contents = {Digest.of(data): data for data in (content(4096, seed) for seed in range(100))}

    async def all_of_them(exchange: Exchange) -> None:
        digest = exchange.request.path.split("/")[-1].split("?")[0]
        await honest(replace(exchange, content=contents[Digest(digest)]))

    async with peers(b"", all_of_them) as [a], pulling([a.holder]) as host:
        remaining = list(contents)

        async def pull() -> None:
            while remaining:
                digest = remaining.pop()
                assert (await host.get(digest)).body == contents[digest]

        await asyncio.gather(*(pull() for _ in range(4)))
        assert len(a.requests) == 100
        assert a.connections <= 4


@pytest.mark.parametrize("path", DATA_PATHS)
async def test_a_large_transfer_frees_its_connection_for_reuse(path: str) -> None:
    data = content(LARGE)
    async with peers(data, honest) as [a], pulling([a.holder], **DATA_PATHS[path]) as host:
        for _ in range(5):
            assert (await host.get(Digest.of(data))).body == data
            assert (await host.get(Digest.of(data), "bytes=100-500000")).body == data[100:500001]
        assert a.connections <= 2


_RELAYS = """
import asyncio, resource, sys
from tests.mirror.relay.peers import Exchange, peers
from tests.mirror.relay.pulling import MIB, pulling, path_of
from peili.mirror import Digest
import hashlib

PIECES = 256

async def large(exchange: Exchange) -> None:
    await exchange.head(content_length=str(PIECES * MIB), docker_content_digest=digest)
    for _ in range(PIECES):
        await exchange.send(piece)

piece = bytes(range(256)) * (MIB // 256)
whole = hashlib.sha256()
for _ in range(PIECES):
    whole.update(piece)
digest = Digest(f"sha256:{whole.hexdigest()}")

def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

async def relay(host: object, count: int) -> None:
    async with host.client.stream("GET", path_of(digest)) as response:
        async for each in response.aiter_raw():
            count -= len(each)
    assert count == 0

async def main() -> None:
    async with peers(b"", large) as [a], pulling([a.holder], stall_timeout=20, first_byte_timeout=20) as host:
        await relay(host, PIECES * MIB)
        print(peak() - before)

before = peak()
asyncio.run(main())
"""


def test_memory_does_not_grow_with_the_blob() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", _RELAYS],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 24 * 1024, "KiB over 256 MiB relayed"
