"""Holders that are sick cost about once, not for each blob, and keep no good one from being used."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from tests.relay.peers import Script, ScriptedPeer, honest, listening, member
from tests.relay.pulling import KIB, Host, content, pulling, until
from tests.relay.sicknesses import SICK

from peili.mirror import Digest, PushRouter

pytestmark = pytest.mark.anyio

BLOBS = {Digest.of(data): data for data in (content(700 * KIB, seed) for seed in range(6))}
LIMITS: dict[str, Any] = {
    "hedge_delay": 0.5,
    "first_byte_timeout": 60.0,
    "stall_timeout": 60.0,
    "wait_timeout": 120.0,
    "min_rate": 1,
    "failure_ttl": 1000.0,  # longer than this takes on any machine
    "rest_max": 1000.0,
}
"""What is measured in seconds hides nothing: a sick holder is never given up for its time alone."""


@asynccontextmanager
async def cluster(
    scripts: Sequence[Script], blobs: Mapping[Digest, bytes] = BLOBS, **limits: Any
) -> AsyncGenerator[tuple[Host, list[ScriptedPeer]]]:
    """A host, and as many members as there are scripts; each has the blobs. The last one answers 30 ms late."""
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


def gets(scripted: ScriptedPeer) -> int:
    """How often it was asked for content."""
    return sum(each.method == "GET" for each in scripted.asked)


@pytest.mark.parametrize("sickness", SICK)
async def test_the_sick_are_asked_about_once_for_all_blobs(sickness: str) -> None:
    async with cluster([*[SICK[sickness]] * 3, honest]) as (host, members):
        for digest, data in BLOBS.items():
            assert (await host.get(digest)).body == data
        asked = [gets(each) for each in members]
        # Tried, then used, or on a kept connection and then on a fresh one; and once more, where it was another's turn.
        assert all(count <= 3 for count in asked[:-1]), asked
        assert asked[-1] >= len(BLOBS) - 1
