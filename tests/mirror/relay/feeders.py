"""Scripted feeders: peers that still receive the content themselves. A test controls what they have and say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.mirror.relay.peers import Exchange, SaysReceived, ScriptedPeer
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Digest, Holder


class ScriptedFeeder(SaysReceived):
    """The script of a peer that has the first `available` bytes, and sends what it has as it gets more.

    Attributes:
        available: How many bytes it states.
        sends: How many bytes it sends at most; None: all that it has.
        path: The ids in its answers.
        waiting: What it says that it waits for.
        status: The status of its answers about the key.
        on_question: Replaces the answer about the key, or is called before it.
        questions: How often it was asked about the key.
        received: What it says that it received; None if it does not know.
        may_say: While it is not set, it does not answer what it received.
        sent: What it sends instead of its content.
        has_keys: Whether its router answers requests for keys. If not, only its door answers.
        held: While it is not set, requests for the content get no answer.
    """

    def __init__(self, available: int = 0) -> None:
        self.available = available
        self.sends: int | None = None
        self.path: tuple[str, ...] = ()
        self.waiting = "upstream"
        self.status = 200
        self.is_whole, self.has_keys = False, True
        self.on_question: Callable[[Exchange], Awaitable[None]] | None = None
        self.questions = 0
        self.held = asyncio.Event()
        self.held.set()
        self.is_cut = False
        self.sent: bytes | None = None
        self.received: bytes | None = None
        self.may_say = asyncio.Event()
        self.may_say.set()
        self._changed = asyncio.Condition()

    @override
    async def __call__(self, exchange: Exchange) -> None:
        if exchange.request.path.startswith("/_router/keys/"):
            if self.has_keys:
                await self._answer_question(exchange)
            else:
                await exchange.head(404, content_length="0")
            return
        if exchange.request.method == "HEAD":
            await self._answer_question(exchange)
            return
        if exchange.request.path.startswith("/_relay/"):
            await self.may_say.wait()
            body = self.received or b""
            await exchange.head(200 if body else 404, content_length=str(len(body)))
            await exchange.send(body)
            return
        await self.held.wait()
        data = exchange.content if self.sent is None else self.sent
        if self.is_whole:
            await exchange.head()
        else:
            await exchange.head(None, **self._headers())
        start, stop = exchange.part
        while start < stop:
            if self.is_cut:
                exchange.reset()
                return
            limit = min(stop, self.available if self.sends is None else min(self.sends, self.available))
            if start < limit:
                await exchange.send(data[start:limit])
                start = limit
                continue
            async with self._changed:
                await self._changed.wait()

    async def set(self, **values: object) -> None:
        """Change attributes, and let the responses go on."""
        for name, value in values.items():
            assert hasattr(self, name)
            setattr(self, name, value)
        async with self._changed:
            self._changed.notify_all()

    async def asked(self, count: int) -> None:
        """Wait until it was asked about the key `count` more times."""
        goal = self.questions + count
        await until(lambda: self.questions >= goal)

    async def _answer_question(self, exchange: Exchange) -> None:
        self.questions += 1
        if self.on_question is not None:
            await self.on_question(exchange)
        if exchange.writer.is_closing():
            return
        size = str(len(exchange.content))
        if self.status != 200:
            await exchange.head(self.status, content_length="0")
        elif self.is_whole:
            await exchange.head(content_length="0", Peili_Complete="true", Peili_Size=size)
        else:
            await exchange.head(None, content_length="0", Peili_Size=size, **self._headers())

    def _headers(self) -> dict[str, str]:
        headers = {"Peili_Complete": "false", "Peili_Available": str(self.available), "Peili_Waiting": self.waiting}
        return headers | ({"Peili_Path": ", ".join(self.path)} if self.path else {})


def in_flight(peer: ScriptedPeer, available: int = 0) -> Holder:
    """Return `peer` as a holder that still receives its content."""
    return Holder(peer.peer, complete=False, available=available, size=len(peer.content))


def gets(peer: ScriptedPeer, digest: Digest) -> list[str | None]:
    """Return the ranges of the requests for the content that `peer` received."""
    return [each.range for each in peer.requests if each.method == "GET" and digest in each.path]
