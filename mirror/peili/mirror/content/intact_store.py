"""A store without content that it has whole, but with wrong bytes, for example because a disk has changed them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from typing import Any

from typing_extensions import override

from peili.mirror.content.wrapped_store import WrappedStore
from peili.mirror.errors import NotFound
from peili.mirror.oci.references import Descriptor, Digest
from peili.mirror.plugins.checks import check
from peili.mirror.plugins.content import Content, Gone, Have, StoreEvent
from peili.mirror.plugins.interfaces import Store
from peili.mirror.support.newest import put_newest
from peili.mirror.support.tasks import Broadcast

_MAX_DAMAGED = 1024


class IntactStore(WrappedStore):
    """What a store has, without content that was found to be damaged.

    A store does not verify what it sends. Without this, each host that reads damaged content would have to find out for
    itself, with a pull that fails. The content is there again when the store has removed and got it anew. Used on one
    event loop.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._damaged: OrderedDict[Digest, None] = OrderedDict()  # the oldest is forgotten for a new one
        self._changes = Broadcast()

    def note_damaged(self, digest: Digest) -> None:
        """Note that the store's whole copy of `digest` has wrong bytes. Watchers get `Gone`."""
        put_newest(self._damaged, digest, None, _MAX_DAMAGED)
        self._changes.notify()

    def is_damaged(self, digest: Digest) -> bool:
        """Return whether the store's whole copy of `digest` has wrong bytes, as far as this is known."""
        return digest in self._damaged

    async def open_unchecked(self, digest: Digest) -> Content:
        """Like `open`, also for damaged content, and for content that is still arriving."""
        return await self._store.open(digest, partial=True)

    def _require(self, digest: Digest) -> None:
        if digest in self._damaged:
            raise NotFound(f"the copy of {digest} on this host has wrong bytes")

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        self._require(digest)
        return await super().describe(digest)

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        self._require(digest)
        return await super().open(digest, partial=partial)

    @override
    async def was_fetched(self, digest: Digest) -> bool | None:
        self._require(digest)
        return await super().was_fetched(digest)

    @override
    async def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        told: set[Digest] = set()  # damaged content of which the watcher knows that it is gone
        reading: asyncio.Future[Sequence[StoreEvent]] | None = None
        async with aclosing(super().watch()) as batches:
            try:
                while True:
                    changed = self._changes.next_change
                    told &= self._damaged.keys()
                    if new := self._damaged.keys() - told:
                        told |= new
                        yield [Gone(digest) for digest in new]
                        continue
                    reading = reading or asyncio.ensure_future(anext(batches))
                    await _wait_for_either(reading, changed)
                    if not reading.done():
                        continue
                    batch, reading = self._checked_batch(reading), None
                    if events := [each for each in batch if self._is_shown(each)]:
                        yield events
            finally:
                if reading is not None:
                    reading.cancel()
                    await asyncio.wait([reading])
                    if not reading.cancelled():
                        reading.exception()  # marks it as retrieved: nobody reads this watch any more

    def _checked_batch(self, reading: asyncio.Future[Sequence[StoreEvent]]) -> Sequence[StoreEvent]:
        """Return what the store's watch has yielded. Its errors are raised."""
        try:
            batch = reading.result()
        except StopAsyncIteration as end:
            raise RuntimeError(f"{self.name}.watch has ended, which it must never do") from end
        said = f"{self.name}.watch yielded"
        check(batch, Collection, said)
        for each in batch:
            check(each, StoreEvent, f"{said} in a batch")
        return batch

    def _is_shown(self, event: StoreEvent) -> bool:
        """Return whether a watcher gets `event`. Content that the store has lost, or gets anew, is not damaged now."""
        if not isinstance(event, (Have, Gone)) or not isinstance(event.key, Digest) or event.key not in self._damaged:
            return True
        if isinstance(event, Have) and event.complete:
            return False
        del self._damaged[event.key]
        return True


async def _wait_for_either(reading: asyncio.Future[Sequence[StoreEvent]], changed: asyncio.Event) -> None:
    change = asyncio.ensure_future(changed.wait())
    waiting: list[asyncio.Future[Any]] = [reading, change]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        change.cancel()
