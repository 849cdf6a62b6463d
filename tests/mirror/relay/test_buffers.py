"""Content that is collected whole shares the memory of all transfers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.mirror.relay.peers import Exchange, honest, peers
from tests.mirror.relay.pulling import KIB, MIB, Told, content, pulling, until

from peili.mirror import Digest
from peili.mirror.relay.buffers import RING_LENGTH, BufferPool

pytestmark = pytest.mark.anyio


async def test_what_is_collected_is_bounded_and_little_content_has_room_of_its_own() -> None:
    memory = BufferPool(16 * MIB)
    for _ in range(2):
        await memory.reserve(4 * MIB)
    waiting = asyncio.create_task(memory.reserve(MIB))
    await asyncio.sleep(0)
    assert not waiting.done()
    await memory.reserve(64 * KIB)
    memory.release(4 * MIB)
    async with asyncio.timeout(30):
        await waiting


async def test_what_is_larger_than_the_room_gets_it_alone() -> None:
    memory = BufferPool(MIB)
    await memory.reserve(4 * MIB)
    waiting = asyncio.create_task(memory.reserve(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    memory.release(4 * MIB)
    async with asyncio.timeout(30):
        await waiting


async def test_rings_are_smaller_while_content_is_collected() -> None:
    memory = BufferPool(2 * RING_LENGTH * MIB)
    with memory.ring() as ring:
        assert len(await ring.next_buffer()) == 2 * MIB
    await memory.reserve(RING_LENGTH * MIB)
    with memory.ring() as ring:
        assert len(await ring.next_buffer()) == MIB
    memory.release(RING_LENGTH * MIB)
    with memory.ring() as ring:
        assert len(await ring.next_buffer()) == 2 * MIB


async def test_hanging_content_takes_no_more_than_its_share() -> None:
    """Eight requests for content of 200 KiB, whose holders hang: two fit, the others go upstream. Then all is free."""
    data, going = [content(200 * KIB, seed) for seed in range(8)], asyncio.Event()

    async def hangs(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send(exchange.body[:-1])
        await going.wait()
        await exchange.send(exchange.body[-1:])

    async with peers(b"", honest) as [a]:

        async def by_path(exchange: Exchange) -> None:
            exchange.content = next(each for each in data if Digest.of(each) in exchange.asked.path)
            await hangs(exchange)

        a.script = by_path
        bounds: dict[str, Any] = {
            "relay_memory": 800 * KIB,
            "verify_ahead": MIB,
            "first_byte_timeout": 2,
            "stall_timeout": 60,
        }
        async with pulling(Told(a.holder), rate_window=600, wait_timeout=90, **bounds) as host:
            limited = host.mirror.metrics.limited
            asking = [asyncio.create_task(host.get(Digest.of(each))) for each in data]
            await until(lambda: limited.value("relay_memory") == 6, within=60)
            going.set()
            assert sorted([(await each).status for each in asking]) == [200] * 2 + [404] * 6
            assert (await host.get(Digest.of(data[0]))).body == data[0]
            together = await asyncio.gather(*(host.get(Digest.of(each)) for each in data))
            assert [each.body for each in together] == data
