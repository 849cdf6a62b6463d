"""Holders that are sick cost about once, not for each blob, and never keep a good one from being used."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from tests.relay.peers import Exchange, Script, ScriptedPeer, drips_after, honest, listening, silent, silent_after
from tests.relay.pulling import LARGE, content, pulling, until

from peili.mirror import Digest, Holder, Limits, Peer
from peili.mirror.peers import FAILED_SILENT
from peili.mirror.relay.peer_health import PeerHealth

pytestmark = pytest.mark.anyio

BLOBS = [content(LARGE, seed) for seed in range(4)]
SICK: dict[str, Script] = {
    "hangs after its first byte": silent_after(1),
    "never answers": silent,
    "1 B/s": drips_after(1, piece=1, pause=1),
    "90 kB/s": drips_after(0, piece=9000, pause=0.1),
    "hangs in the middle": silent_after(300_000),
}
LIMITS: dict[str, Any] = {
    "hedge_delay": 0.25,
    "switch_delay": 1.0,
    "first_byte_timeout": 30.0,
    "stall_timeout": 30.0,
    "wait_timeout": 60.0,
    "min_rate": 1,
}


def _of_all(script: Script) -> Script:
    """As `script`, with the blob that was asked for."""

    async def answer(exchange: Exchange) -> None:
        exchange.content = next(each for each in BLOBS if Digest.of(each) in exchange.asked.path)
        await script(exchange)

    return answer


@pytest.mark.parametrize("sickness", SICK)
async def test_sick_holders_are_not_asked_for_each_blob(sickness: str) -> None:
    async with AsyncExitStack() as stack:
        sick = [
            await stack.enter_async_context(listening(ScriptedPeer(f"sick{n}", b"", _of_all(SICK[sickness]))))
            for n in range(3)
        ]
        good = await stack.enter_async_context(listening(ScriptedPeer("good", b"", _of_all(honest))))
        host = await stack.enter_async_context(pulling([*(each.holder for each in sick), good.holder], **LIMITS))
        async with asyncio.timeout(25):  # below what one stall costs
            for blob in BLOBS:
                assert (await host.get(Digest.of(blob))).body == blob
        asked = [path for each in sick for path in (one.path for one in each.asked)]
        assert all(len(each.asked) <= 2 for each in sick), asked


async def test_where_all_are_sick_they_are_used() -> None:
    async with AsyncExitStack() as stack:
        slow = await stack.enter_async_context(
            listening(ScriptedPeer("slow", b"", _of_all(drips_after(0, piece=60_000, pause=0.1))))
        )
        host = await stack.enter_async_context(pulling([slow.holder], **LIMITS, slow_rate=100 * LARGE))
        for blob in BLOBS:
            assert (await host.get(Digest.of(blob))).body == blob
        await until(lambda: slow.open <= 1)


def test_failures_rest_a_peer_for_longer_and_longer_and_a_success_ends_it() -> None:
    clock = [0.0]
    health = PeerHealth(Limits(failure_ttl=10, rest_max=30), lambda: clock[0])
    holders = [Holder(Peer(name, ()), complete=True) for name in "ab"]
    for pause in (10, 20, 30, 30):
        health.failed("a", FAILED_SILENT)
        health.failed("a", FAILED_SILENT)  # of the same moment
        assert [each.peer.id for each in health.order(holders)] == ["b", "a"]
        clock[0] += pause - 0.1
        assert health.resting() == ["a"]
        clock[0] += 0.2
        assert health.resting() == []
    health.failed("a", FAILED_SILENT)
    health.succeeded("a")
    assert not health.rests("a")


def test_the_table_is_bounded() -> None:
    health = PeerHealth(Limits(quarantine_entries=2))
    for name in "abc":
        health.failed(name, FAILED_SILENT)
    assert health.resting() == ["b", "c"]
