"""A feeder on a slow link sends one packet after the other. They are read several at a time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.mirror.relay.peers import Exchange, peers
from tests.mirror.relay.pulling import LARGE, AdvisingRouter, content, pulling

from peili.mirror import Digest, Feed
from peili.mirror.content.incoming import Tap

pytestmark = pytest.mark.anyio

PACKET = 1448


async def _drips(exchange: Exchange) -> None:
    """Send small packets, as a link of about 12 Mbit/s does."""
    await exchange.head(200, peili_complete="false", peili_available="0", peili_path="a")
    for start in range(0, len(exchange.body), PACKET):
        await exchange.send(exchange.body[start : start + PACKET])
        await asyncio.sleep(0.001)


async def test_the_packets_of_a_feeder_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    data = content(LARGE)
    reads: list[int] = []
    write = Tap.write

    def recording(self: Tap, offset: int, piece: memoryview) -> None:
        reads.append(len(piece))
        write(self, offset, piece)

    monkeypatch.setattr(Tap, "write", recording)
    async with peers(data, _drips) as [a], pulling(AdvisingRouter(Feed((replace(a.holder, complete=False),)))) as host:
        pulled = await host.get(Digest.of(data))
    assert pulled.body == data
    assert sum(reads) == len(data)
    assert len(reads) < len(data) / PACKET / 2
