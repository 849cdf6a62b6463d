"""Passages between a source and a sink that nobody ever has to wait for: others must have their turn then, too."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator
from contextlib import ExitStack

import pytest
from typing_extensions import override

from peili.mirror import Digest, Peer
from peili.mirror.limits import KIB, MIB
from peili.mirror.outlet import Outlet
from peili.mirror.ranges import Span
from peili.mirror.relay.hashing import Hasher
from peili.mirror.relay.memory import SLOTS, Memory
from peili.mirror.relay.passage import Hashing, Passage, Untouched
from peili.mirror.relay.source import Source
from peili.mirror.relay.verifier import Verifier

pytestmark = pytest.mark.anyio

PIECES = 64
PIECE = 32 * KIB


class Quick(Source):
    """Always has the next piece."""

    def __init__(self) -> None:
        self.peer = Peer("quick", ())
        self.span = Span.whole(PIECES * PIECE)
        self.offset = 0

    @property
    @override
    def can_splice(self) -> bool:
        return True

    @override
    async def readinto(self, buffer: memoryview) -> int:
        self.offset += PIECE
        return PIECE

    @override
    async def splice(self, pipe: int, count: int) -> int:
        self.offset += PIECE
        return os.write(pipe, bytes(PIECE))


class Taking(Outlet):
    """Takes everything at once."""

    taken = 0

    @override
    def give_up_after(self, seconds: float) -> None:
        """It takes everything."""

    @override
    async def sendfile(self, fd: int, offset: int, count: int) -> int:
        raise NotImplementedError

    @override
    async def send(self, data: bytes | memoryview) -> None:
        self.taken += len(data)

    @override
    async def splice(self, pipe: int, count: int) -> None:
        self.taken += len(os.read(pipe, count))


class Sink:
    """With an outlet, or without."""

    def __init__(self, outlet: Taking | None) -> None:
        self.outlet = outlet
        self.taken = 0

    async def send(self, data: bytes | memoryview) -> None:
        self.taken += len(data)


def _ignore(_: int) -> None:
    pass


@pytest.fixture
def hasher() -> Generator[Hasher]:
    made = Hasher()
    yield made
    made.close()


def hashing(sink: Sink, hasher: Hasher) -> Passage:
    verifier = Verifier(Digest.of(bytes(PIECES * PIECE)))
    with Memory(SLOTS * PIECE).ring() as ring:
        return Hashing(sink, ring, verifier, hasher.lane(), start=0, progress=_ignore)


def untouched(sink: Sink, _: Hasher) -> Passage:
    return Untouched(sink, Memory(MIB), _ignore)


@pytest.mark.parametrize(
    ("passage", "outlet"),
    [(hashing, None), (untouched, None), (untouched, Taking())],
    ids=["hashed", "copied", "spliced"],
)
async def test_others_have_their_turn_between_pieces(
    passage: Callable[[Sink, Hasher], Passage], outlet: Taking | None, hasher: Hasher
) -> None:
    sink, source, turns = Sink(outlet), Quick(), 0
    making = passage(sink, hasher)
    taking = asyncio.create_task(making.take(source))
    while not taking.done():
        turns += 1
        await asyncio.sleep(0)
    await taking
    await making.finish()
    assert sink.taken + (outlet.taken if outlet else 0) == PIECES * PIECE
    assert turns >= PIECES / SLOTS


async def test_memory_is_bounded_and_shared() -> None:
    memory = Memory(32 * MIB)
    with ExitStack() as rings:
        lent = [rings.enter_context(memory.ring()).piece * SLOTS for _ in range(100)]
    assert lent == sorted(lent, reverse=True)
    assert lent[0] == 4 * MIB // SLOTS // KIB * KIB * SLOTS
    assert lent[-1] == 32 * KIB * SLOTS
    assert sum(lent[:32]) <= 32 * MIB
    assert sum(lent) <= 32 * MIB + 70 * lent[-1]
    with memory.ring() as ring:
        assert ring.piece * SLOTS == lent[0]


async def test_a_buffer_is_not_given_twice_before_it_was_given_back() -> None:
    with Memory(MIB).ring() as ring:
        for mark in range(SLOTS):
            (await ring.free())[:1] = bytes([mark])
            ring.use()
        waiting = asyncio.create_task(ring.free())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        ring.give_back()
        assert (await waiting)[0] == 0  # the oldest
