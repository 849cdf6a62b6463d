"""Writes down which peer gave what: a router that lends leases and looks at what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from typing_extensions import override

from peili.mirror import Feed, Key, Lease, Peer, Upstream, Wait, Want
from peili.routers.static import StaticRouter


class Ledger:
    """From which byte on which peer gave what, to one host."""

    def __init__(self) -> None:
        self._given: dict[Key, dict[str, int]] = {}
        self._waiting: dict[Key, Callable[[str], None]] = {}

    def note(self, key: Key, peer: str, start: int) -> None:
        """`peer` gives `key` from byte `start` on."""
        self._given.setdefault(key, {})[peer] = start

    def sources(self, key: Key, size: int) -> dict[str, int]:
        """Bytes of `key`, which has `size`, by peer, in the order in which they began."""
        starts = self._given.get(key, {})
        stops = [*starts.values(), size][1:]
        return {peer: stop - start for (peer, start), stop in zip(starts.items(), stops, strict=True)}

    def when_begun(self, key: Key, tell: Callable[[str], None]) -> None:
        """Call `tell` once, with the peer that is about to give `key`."""
        self._waiting[key] = tell

    def begin(self, key: Key, peer: str) -> None:
        """`peer` is about to give `key`."""
        if tell := self._waiting.pop(key, None):
            tell(peer)


class _Entry(Lease):
    def __init__(self, ledger: Ledger, want: Want, peer: str) -> None:
        self._ledger = ledger
        self._want = want
        self._peer = peer

    @override
    def progress(self, offset: int) -> None:
        self._ledger.note(self._want.key, self._peer, self._want.offset)


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
        self._ledger.begin(want.key, first.peer.id)
        return replace(advice, holders=(first,), lease=_Entry(self._ledger, want, first.peer.id))
