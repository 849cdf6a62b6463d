"""What a store has, for any number of watchers: the implementation of `Store.watch`.

A store updates the inventory with what it learns about its backend.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence

from peili.mirror.oci.references import Key
from peili.mirror.plugins.content import Gone, Have, StoreEvent, Synced

BATCH = 1024
"""The largest number of events that a watcher gets at once."""


class Inventory:
    """The state of every key that a store can serve. Used on one event loop; not thread-safe.

    A watcher that is slow gets only the last state of a key that changed several times in the meantime. The memory for
    a watcher is bounded by the number of keys that exist and that it knows.

    Attributes:
        synced: Whether everything that the backend has was recorded once. Watchers do not get `Synced` earlier.
    """

    def __init__(self) -> None:
        self._have: dict[Key, Have] = {}
        self._watchers: set[_Watcher] = set()
        self.synced = False

    def __len__(self) -> int:
        return len(self._have)

    def __iter__(self) -> Iterator[Have]:
        return iter(self._have.values())

    def __contains__(self, key: Key) -> bool:
        return key in self._have

    def get(self, key: Key) -> Have | None:
        """Return the state of `key`; None if the store can't serve it."""
        return self._have.get(key)

    def replace(self, have: Iterable[Have]) -> None:
        """Set the state of all keys that the store has complete content of.

        Content that is still arriving stays until there is a `Have` or a `Gone` for its key, because a list of a
        backend's complete content does not have it. Watchers get the differences, and `Synced` if they have not got it
        yet.
        """
        now = {each.key: each for each in have}
        for key in [key for key, state in self._have.items() if state.complete and key not in now]:
            self._set(key, None)
        for key, state in now.items():
            self._set(key, state)
        self.synced = True
        self._notify()

    def update(self, events: Iterable[StoreEvent]) -> None:
        """Change the state of some keys. `Synced` says that everything was recorded."""
        for event in events:
            match event:
                case Have(key=key):
                    self._set(key, event)
                case Gone(key=key):
                    self._set(key, None)
                case _:
                    self.synced = True
        self._notify()

    async def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        """Implement `Store.watch`. Close the generator (`contextlib.aclosing`) when done."""
        watcher = _Watcher(dict.fromkeys(self._have, False))
        self._watchers.add(watcher)
        synced = False
        try:
            while True:
                watcher.changed.clear()
                events = self._pending_events(watcher)
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

    def _pending_events(self, watcher: _Watcher) -> list[StoreEvent]:
        pending, watcher.pending = watcher.pending, {}
        return [self._have.get(key) or Gone(key) for key in pending]

    def _notify(self) -> None:
        for watcher in self._watchers:
            watcher.changed.set()


class _Watcher:
    """One caller of `watch`.

    Attributes:
        pending: The keys whose state it gets next, each with whether it knows that the key existed.
        changed: Set when there is something to get.
    """

    def __init__(self, pending: dict[Key, bool]) -> None:
        self.pending = pending
        self.changed = asyncio.Event()

    def note(self, key: Key, *, known: bool, gone: bool) -> None:
        known = self.pending.setdefault(key, known)
        if gone and not known:
            del self.pending[key]  # the watcher never knew it
