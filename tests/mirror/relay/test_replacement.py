"""A faster source replaces a slow one: at whatever moment that is, no byte is lost or read twice."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeAlias

import pytest
from tests.mirror.relay.peers import Exchange, ScriptedPeer, peers
from tests.mirror.relay.pulling import content

from peili.mirror import Digest, Limits, Peer
from peili.mirror.client.client import PeerClient
from peili.mirror.errors import FailureReason
from peili.mirror.oci.ranges import ByteRange, Span
from peili.mirror.relay.parallel import ParallelRequests
from peili.mirror.relay.replacement import Replaced
from peili.mirror.relay.source import Source

pytestmark = pytest.mark.anyio

SIZE = 40_000
DATA = content(SIZE)
LIMITS = Limits(first_byte_timeout=60, stall_timeout=60, min_rate=1)
Pipe: TypeAlias = tuple[int, int]


async def in_pieces(exchange: Exchange) -> None:
    await exchange.head()
    body = exchange.body
    for start in range(0, len(body), 700):
        await exchange.send(body[start : start + 700])
        await asyncio.sleep(0)


def any_size(_: Peer, __: Span) -> None:
    """Accepts every size."""


@asynccontextmanager
async def source_of(
    peer: ScriptedPeer, client: PeerClient, start: int, parallel: ParallelRequests | None
) -> AsyncGenerator[Source]:
    """Open a source for all bytes from `start` on."""
    source = await Source.open(
        client,
        peer.peer,
        "/v2/x",
        Digest.of(DATA),
        wanted=ByteRange(start, None),
        limits=LIMITS,
        check_span=any_size,
        parallel=parallel,
    )
    try:
        yield source
    finally:
        await source.aclose()


@contextmanager
def pipe() -> Generator[Pipe]:
    out_of, into = os.pipe()
    os.set_blocking(out_of, False)
    try:
        yield out_of, into
    finally:
        os.close(out_of)
        os.close(into)


async def read(source: Source, got: bytearray, ends: Pipe, *, splice: bool) -> None:
    """Read all of `source` into `got`."""
    buffer = memoryview(bytearray(5000))
    while source.remaining:
        if splice and source.can_splice:
            count = await source.splice(ends[1], 5000)
            got += os.read(ends[0], count)
        else:
            got += buffer[: await source.readinto(buffer)]


@pytest.mark.parametrize("how", ["read", "spliced", "in windows"])
async def test_the_replacement_continues_at_the_next_byte(how: str) -> None:
    parallel = ParallelRequests(LIMITS, lambda _: None) if how == "in windows" else None
    client = PeerClient(LIMITS)
    left_early = 0
    async with peers(DATA, in_pieces) as [a]:
        for steps in range(0, 150, 3):
            got = bytearray()
            with pipe() as ends:
                async with source_of(a, client, 5, parallel) as source:
                    reading = asyncio.create_task(read(source, got, ends, splice=how == "spliced"))
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    source.interrupt(Replaced("another is better", FailureReason.SLOW))
                    [outcome] = await asyncio.gather(reading, return_exceptions=True)
                    assert outcome is None or isinstance(outcome, Replaced)
                    assert got == DATA[5 : source.offset]
                    with pytest.raises(BlockingIOError):
                        os.read(ends[0], 1)
                    if source.remaining:
                        left_early += 1
                        with pytest.raises(Replaced):
                            await source.readinto(memoryview(bytearray(10)))
                if source.remaining:
                    async with source_of(a, client, source.offset, parallel) as other:
                        await read(other, got, ends, splice=how == "spliced")
            assert got == DATA[5:]
    await client.aclose()
    assert left_early > 10
