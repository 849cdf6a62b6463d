"""Writes down which peer gave what: a router that lends leases and looks at what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from typing_extensions import override

from peili.mirror import Feed, Key, Lease, Peer, Upstream, Wait, Want
from peili.routers.static import StaticRouter


class Ledger:
    """How many bytes of each key came from which peer, to one host."""

    def __init__(self) -> None:
        self._given: dict[Key, dict[str, int]] = {}
        self._waiting: list[tuple[Key, int, asyncio.Future[str]]] = []

    def note(self, key: Key, peer: str, start: int, offset: int) -> None:
        """`peer` has given `key` from byte `start` up to `offset`."""
        self._given.setdefault(key, {})[peer] = offset - start
        for wanted, least, found in self._waiting:
            if wanted == key and offset >= least and not found.done():
                found.set_result(peer)

    def sources(self, key: Key) -> dict[str, int]:
        """Bytes by peer, in the order in which they began."""
        return self._given.get(key, {})

    async def feeder(self, key: Key, offset: int) -> str:
        """Who gives `key` at the moment when `offset` is reached."""
        found: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, offset, found))
        return await found


class _Entry(Lease):
    def __init__(self, ledger: Ledger, want: Want, peer: str) -> None:
        self._ledger = ledger
        self._want = want
        self._peer = peer

    @override
    def progress(self, offset: int) -> None:
        self._ledger.note(self._want.key, self._peer, self._want.offset, offset)


class LedgerRouter(StaticRouter):
    """A static router that names one holder at a time, so that what it gave is known."""

    def __init__(self, peers: Iterable[Peer], ledger: Ledger) -> None:
        super().__init__(peers)
        self._ledger = ledger

    @override
    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        advice = await super().acquire(want)
        if not isinstance(advice, Feed):
            return advice
        first = advice.holders[0]
        return replace(advice, holders=(first,), lease=_Entry(self._ledger, want, first.peer.id))
