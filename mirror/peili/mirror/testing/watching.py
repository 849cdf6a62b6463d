"""Follows what a store's `watch` tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from peili.mirror.oci.references import Key
from peili.mirror.plugins.content import Gone, Have, StoreEvent, Synced
from peili.mirror.plugins.interfaces import Store
from peili.mirror.support.deadlines import Deadline


class Watched:
    """What a watcher knows: every event in the order told, and the state that they amount to.

    Attributes:
        events: all that was told.
        have: what there is now.
        synced: whether all that was there has been told.
        ended: whether the watch ended, which it must not; `error` is what it raised, if it did.
    """

    def __init__(self) -> None:
        self.events: list[StoreEvent] = []
        self.have: dict[Key, Have] = {}
        self.synced = False
        self.ended = False
        self.error: Exception | None = None
        self._changed = asyncio.Event()

    def take(self, event: StoreEvent) -> None:
        """One more event."""
        self.events.append(event)
        match event:
            case Have(key=key):
                self.have[key] = event
            case Gone(key=key):
                self.have.pop(key, None)
            case Synced():
                self.synced = True
            case _:
                raise ValueError(f"no such event: {event!r}")

    async def follow(self, store: Store) -> None:
        """Take every event of a watch of `store`."""
        stream = store.watch()
        try:
            async for events in stream:
                for event in events:
                    self.take(event)
                self._changed.set()
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            self.error = error
        finally:
            self.ended = True
            self._changed.set()
            await stream.aclose()

    async def until(self, condition: Callable[[], bool], *, within: float = 10.0) -> None:
        """Wait until `condition` holds of what is known. Raises TimeoutError when it does not `within` so many seconds,
        RuntimeError when the watch ends before.
        """
        async with Deadline(within):
            while not condition():
                if self.ended:
                    raise RuntimeError("the watch ended") from self.error
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def watching(store: Store) -> AsyncGenerator[Watched]:
    """A watch of `store`, followed in the background."""
    watched = Watched()
    following = asyncio.create_task(watched.follow(store))
    try:
        yield watched
    finally:
        following.cancel()
        await asyncio.wait([following])
