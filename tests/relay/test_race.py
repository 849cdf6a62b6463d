"""The start of a transfer as a function: nothing stays open, whatever the timing."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from tests.relay.pulling import until
from typing_extensions import override

from peili.mirror import Holder, Peer, PeerUnavailable
from peili.mirror.relay.race import first_source
from peili.mirror.relay.source import Source

pytestmark = pytest.mark.anyio


class Openings:
    """Opens sources that do nothing, and counts those that are open."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.failed: list[str] = []
        self.stubborn = asyncio.Event()

    @property
    def left(self) -> int:
        return len(self.opened) - len(self.closed)

    def note(self, peer: Peer, _: PeerUnavailable) -> None:
        self.failed.append(peer.id)

    async def open(self, holder: Holder) -> Source:
        match holder.peer.id.partition("-")[0]:
            case "refuses":
                raise PeerUnavailable("no")
            case "silent":
                await asyncio.get_running_loop().create_future()
            case "stubborn":  # opens although it is told to stop
                with suppress(asyncio.CancelledError):
                    await asyncio.get_running_loop().create_future()
                await self.stubborn.wait()
            case "slow":
                await asyncio.sleep(0.05)
            case _:
                pass
        self.opened.append(holder.peer.id)
        return _Closing(holder.peer, self.closed)

    async def race(self, *names: str, delay: float = 0.01) -> Source | None:
        holders = [Holder(Peer(name, ()), complete=True) for name in names]
        return await first_source(holders, self.open, self.note, delay)


class _Closing(Source):
    """Has nothing to read; notes that it was closed."""

    def __init__(self, peer: Peer, closed: list[str]) -> None:
        self.peer = peer
        self._closed = closed

    @override
    async def aclose(self) -> None:
        self._closed.append(self.peer.id)


async def test_nobody_wins_where_there_is_nobody() -> None:
    assert await Openings().race() is None


async def test_all_that_fail_are_named() -> None:
    openings = Openings()
    assert await openings.race("refuses-1", "refuses-2") is None
    assert openings.failed == ["refuses-1", "refuses-2"]


async def test_a_refusal_is_not_waited_out() -> None:
    openings = Openings()
    async with asyncio.timeout(1):
        winner = await openings.race("refuses", "good", delay=60)
    assert winner is not None
    assert winner.peer.id == "good"


async def test_only_the_winner_stays_open() -> None:
    openings = Openings()
    openings.stubborn.set()
    winner = await openings.race("silent", "stubborn", "slow", "good")
    assert winner is not None
    assert winner.peer.id in {"slow", "good"}
    assert openings.left == 1
    await winner.aclose()
    assert openings.left == 0


async def test_nothing_stays_open_when_it_is_cancelled_while_waiting() -> None:
    openings = Openings()
    racing = asyncio.create_task(openings.race("silent-1", "silent-2"))
    await asyncio.sleep(0.05)
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert openings.left == 0


async def test_nothing_stays_open_when_it_is_cancelled_while_the_late_ones_are_closed() -> None:
    openings = Openings()
    racing = asyncio.create_task(openings.race("stubborn", "good"))
    await until(lambda: "good" in openings.opened)
    await asyncio.sleep(0.02)
    assert not racing.done()  # it has a winner, and waits for the stubborn one
    racing.cancel()
    openings.stubborn.set()
    with pytest.raises(asyncio.CancelledError):
        await racing
    await until(lambda: not openings.left)
    assert set(openings.closed) == set(openings.opened)
