"""Faulty holders cost time about once, not for each blob, and do not prevent the use of a good one."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from tests.mirror.relay.faults import FAULTS
from tests.mirror.relay.peers import Exchange, Script, ScriptedPeer, drips_after, honest, listening, member
from tests.mirror.relay.pulling import DATA_PATHS, KIB, Host, content, pulling
from tests.support.waiting import until

from peili.mirror import Digest, PushRouter

pytestmark = pytest.mark.anyio

BLOBS = {Digest.of(data): data for data in (content(700 * KIB, seed) for seed in range(6))}
LIMITS: dict[str, Any] = {
    "hedge_delay": 0.5,
    "first_byte_timeout": 60.0,
    "stall_timeout": 60.0,
    "wait_timeout": 120.0,
    "min_rate": 1,
    "failure_ttl": 1000.0,  # longer than these tests take on any machine
    "rest_max": 1000.0,
}
"""No limit in seconds takes effect: a faulty holder is never dropped by a timeout alone."""


@asynccontextmanager
async def cluster(
    scripts: Sequence[Script], blobs: Mapping[Digest, bytes] = BLOBS, **limits: Any
) -> AsyncGenerator[tuple[Host, list[ScriptedPeer]]]:
    """Serve a host, and a member with all blobs for each script. The last member answers 30 ms late."""
    async with AsyncExitStack() as stack:
        members: list[ScriptedPeer] = []
        for number, script in enumerate(scripts):
            name, late = f"member-{number}", 0.03 if number == len(scripts) - 1 else 0
            scripted = ScriptedPeer(name, b"", member(name, blobs, script, late=late))
            members.append(await stack.enter_async_context(listening(scripted)))
        router = PushRouter()
        router.set([each.peer for each in members])
        host = await stack.enter_async_context(pulling(router, **{**LIMITS, **limits}))
        await until(host.mirror.ready)
        yield host, members


def count_gets(scripted: ScriptedPeer) -> int:
    """Return how many GET requests it received."""
    return sum(each.method == "GET" for each in scripted.requests)


@pytest.mark.parametrize("fault", FAULTS)
async def test_faulty_holders_are_asked_about_once_for_all_blobs(fault: str) -> None:
    tries = list[list[int]]()
    while len(tries) < 5:  # on a busy machine, the good holder looks slow at times, and then another one is preferred
        async with cluster([*[FAULTS[fault]] * 3, honest]) as (host, members):
            for digest, data in BLOBS.items():
                assert (await host.get(digest)).body == data
            *faulty, good = counts = [count_gets(each) for each in members]
            tries.append(counts)
        # A trial and the transfer, or a kept connection and then a fresh one; once more if another one was preferred.
        if max(faulty) <= 3 and good >= len(BLOBS) - 1:
            return
    pytest.fail(f"GET requests to each holder, the good one last: {tries}")


@pytest.mark.parametrize("fault", ["hangs after its first byte", "hangs in the middle", "90 kB/s", "503"])
async def test_faulty_holders_are_asked_about_once_for_concurrent_blobs(fault: str) -> None:
    async with cluster([*[FAULTS[fault]] * 3, honest]) as (host, members):
        pulled = await asyncio.gather(*map(host.get, BLOBS))
        assert [each.body for each in pulled] == [*BLOBS.values()]
        counts = [count_gets(each) for each in members]
        for digest, data in BLOBS.items():
            assert (await host.get(digest)).body == data
        again = [now - before for now, before in zip(map(count_gets, members), counts, strict=True)]
        assert all(count <= 3 for count in again[:-1]), again


async def test_the_log_says_why_another_holder_takes_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "peili")
    async with cluster([FAULTS["hangs in the middle"], honest]) as (host, _):
        digest, data = next(iter(BLOBS.items()))
        assert (await host.get(digest)).body == data
    assert "read from member-0 from byte 0 on, the first that delivers of member-0" in caplog.text
    assert "on, because it was much faster than the last holder" in caplog.text


async def test_no_holder_is_blamed_if_all_are_slow() -> None:
    slow = drips_after(0, piece=9000, pause=0.03)
    async with cluster([slow] * 3, hedge_delay=0.3) as (host, _):
        for digest, data in [*BLOBS.items()][:2]:
            assert (await host.get(digest)).body == data
        assert host.mirror.metrics.failures.value("slow") == 0


async def test_a_slow_holder_is_used_again_if_there_is_no_other() -> None:
    async with cluster([drips_after(0, piece=60_000, pause=0.03)], hedge_delay=0.02) as (host, [only]):
        for digest, data in [*BLOBS.items()][:3]:
            assert (await host.get(digest)).body == data
        assert count_gets(only) == 3


def erratic(seed: int) -> Script:
    """Send pieces of all sizes, with pauses."""
    chance = random.Random(seed)

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        body, sent = exchange.body, 0
        while sent < len(body):
            count = chance.choice([1, 9000, 90_000])
            await exchange.send(body[sent : sent + count])
            sent += count
            await asyncio.sleep(chance.choice([0, 0, 0, 0.1]))

    return script


@pytest.mark.parametrize("path", DATA_PATHS)
@pytest.mark.parametrize("wanted", [None, "bytes=5-", "bytes=1000-500000"])
async def test_no_byte_is_lost_if_holders_replace_each_other_all_the_time(path: str, wanted: str | None) -> None:
    often: dict[str, Any] = {"hedge_delay": 0.03, "slow_rate": 2**40, "restarts": 10_000, "failure_ttl": 0.01}
    async with cluster([erratic(seed) for seed in range(4)], **DATA_PATHS[path], **often) as (host, _):
        for digest, data in BLOBS.items():
            pulled = await host.get(digest, wanted)
            assert pulled.whole
            assert pulled.body == {None: data, "bytes=5-": data[5:]}.get(wanted, data[1000:500_001])
        failures = host.mirror.metrics.failures
        assert failures.value("slow") + failures.value("silent") > 0
        assert failures.value("wrong") == 0
