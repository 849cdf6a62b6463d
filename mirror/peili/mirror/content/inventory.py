"""What a store has, told to any number of watchers: the bookkeeping behind `Store.watch`.

A store feeds it with what it finds out about its backend; how it finds out is the store's own affair.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence

from peili.mirror.oci.references import Key
from peili.mirror.plugins.content import Gone, Have, StoreEvent, Synced

BATCH = 1024
"""At most this many events are handed to a watcher at once."""


class Inventory:
    """The state of every key that can be served. For use on one event loop; not thread-safe.

    A watcher that is slow is told less often, not later: what changed while it was busy is told once, as it is then.
    What is kept for it is bounded by the keys that there are and those that it was last told of.
    """

    def __init__(self) -> None:
        self._have: dict[Key, Have] = {}
        self._watchers: set[_Watcher] = set()
        self.synced = False
        """Whether everything that the backend has was told once. Watchers get `Synced` no earlier."""

    def __len__(self) -> int:
        return len(self._have)

    def __iter__(self) -> Iterator[Have]:
        return iter(self._have.values())

    def __contains__(self, key: Key) -> bool:
        return key in self._have

    def get(self, key: Key) -> Have | None:
        """What is known of `key`; None: it can't be served."""
        return self._have.get(key)

    def replace(self, have: Iterable[Have]) -> None:
        """This is everything there is now. Watchers are told what differs, and `Synced` where they were not yet."""
        now = {each.key: each for each in have}
        for key in [key for key in self._have if key not in now]:
            self._set(key, None)
        for key, state in now.items():
            self._set(key, state)
        self.synced = True
        self._wake()

    def update(self, events: Iterable[StoreEvent]) -> None:
        """These keys are so now, others are as they were. `Synced` says that all has been told."""
        for event in events:
            match event:
                case Have(key=key):
                    self._set(key, event)
                case Gone(key=key):
                    self._set(key, None)
                case _:
                    self.synced = True
        self._wake()

    async def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        """What `Store.watch` promises, once the inventory is fed. Close it (`contextlib.aclosing`) when done."""
        watcher = _Watcher(dict.fromkeys(self._have, False))
        self._watchers.add(watcher)
        synced = False
        try:
            while True:
                watcher.changed.clear()
                events = self._take(watcher)
                if self.synced and not synced:
                    synced = True
                    events.append(Synced())
                for start in range(0, len(events), BATCH):
                    yield tuple(events[start : start + BATCH])
                await watcher.changed.wait()
        finally:
            self._watchers.discard(watcher)

    def _set(self, key: Key, state: Have | None) -> None:
        before = self._have.get(key)
        if state == before:
            return
        for watcher in self._watchers:
            watcher.note(key, known=before is not None, gone=state is None)
        if state is None:
            del self._have[key]
        else:
            self._have[key] = state

    def _take(self, watcher: _Watcher) -> list[StoreEvent]:
        pending, watcher.pending = watcher.pending, {}
        return [self._have.get(key) or Gone(key) for key in pending]

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.changed.set()


class _Watcher:
    """One caller of `watch`. `pending` are the keys to tell it of; the value: whether it knows that they existed."""

    def __init__(self, pending: dict[Key, bool]) -> None:
        self.pending = pending
        self.changed = asyncio.Event()

    def note(self, key: Key, *, known: bool, gone: bool) -> None:
        known = self.pending.setdefault(key, known)
        if gone and not known:
            del self.pending[key]  # came and went unseen
