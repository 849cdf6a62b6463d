"""Content that arrives here, for another host to read: from the ring, or else from what the store shows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from typing_extensions import override

from peili.mirror.content.incoming import Incoming
from peili.mirror.errors import Aborted, NotFound, StoreUnavailable
from peili.mirror.plugins.content import Content, read_into

_POLL_INTERVAL = 0.02
"""Seconds between two looks for content that the store does not show yet."""
_SHOW_TIMEOUT = 1.0
"""Seconds in which a store shows something of what the runtime has received."""
_RELAYED_POLL_INTERVAL = 0.25
"""The same while the relay passes it on, which usually fills the ring before the store shows anything."""


class IncomingContent(Content):
    """The content of an `Incoming`: from its ring, and else what the store shows of it.

    The store is behind the ring: a runtime's file may lack the last few MiB that the runtime has received. So a read of
    bytes that have left the ring waits for the store. The bytes are not verified, unless `complete` is true. If they
    turn out to be wrong, `Aborted` is raised.

    Args:
        incoming: The content.
        open_stored: Opens what the store shows of the content. Raises NotFound if it shows nothing. None if the store
            does not show content in flight.
        may_read: Returns whether the reader may have the content. It is asked again before the reader gets anything:
            the content may arrive for others than those that it was expected for. None if the reader may have it
            whomever it arrives for.
    """

    def __init__(
        self,
        incoming: Incoming,
        open_stored: Callable[[], Awaitable[Content]] | None,
        may_read: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self.size = incoming.size
        self.available = 0
        self.complete = False
        self._incoming = incoming
        self._generation = incoming.generation
        self._open = open_stored
        self._may_read = may_read
        self._opening = asyncio.Lock()
        self._stored: Content | None = None
        self._is_closed = False
        incoming.add_reader()
        self._refresh(0)

    @override
    def fileno(self) -> int | None:
        """Return the descriptor of the store's file if that has all bytes that are available."""
        stored = self._stored
        has_all = stored is not None and (stored.complete or stored.available >= self.available)
        return stored.fileno() if stored is not None and has_all else None

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        while offset < self._refresh(offset):
            await self._check_right()
            self._check_usable()
            ring = self._incoming.ring
            count = None if ring is None else ring.readinto(offset, buffer)
            if count:
                return count
            if not buffer:
                break
            stored = await self._open_missed(offset)
            if stored.available > offset:
                await self._check_right()
                return await read_into(stored, offset, buffer)
            await self._wait_for_stored(stored, offset)
        return 0

    @override
    async def wait(self, past: int) -> int:
        while True:
            changed = self._incoming.changes.next_change
            self._check_usable()
            if self._refresh(past) > past or self.complete:
                await self._check_right()
                return self.available
            await self._wait_for_change(changed, past)

    async def prepare(self, offset: int) -> None:
        """Wait until `size` is known.

        Args:
            offset: The first byte that will be read.

        Raises:
            Aborted: Nobody expects the content any more, the byte at `offset` can't be read, or the content arrives for
                others than this reader.
        """
        while self.size is None:
            changed = self._incoming.changes.next_change
            self._check_usable()
            self._refresh(0)
            if self.size is None:
                await self._wait_for_change(changed, self.available)
        if self._incoming.has_missed(offset):
            await self._open_missed(offset)
        await self._check_right()
        self._refresh(0)

    @override
    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._incoming.remove_reader()
            self._incoming.changes.notify()
            await self._drop_stored()

    def _check_usable(self) -> None:
        if self._is_closed:
            raise ValueError("the content is closed")
        if self._generation != self._incoming.generation:
            raise Aborted("the bytes that had arrived were wrong")

    async def _check_right(self) -> None:
        if self._may_read is not None and not await self._may_read():
            raise Aborted("the content arrives for those who have shown their rights")

    def _refresh(self, offset: int) -> int:
        """Update the attributes, and return how many bytes are available to a reader at `offset`."""
        incoming, stored = self._incoming, self._stored
        if stored is not None:
            incoming.readable = max(incoming.readable, stored.available)
            self.available = max(self.available, stored.available)
            self.complete = self.complete or stored.complete
        if incoming.ring is not None and incoming.is_continuous(offset):
            self.available = max(self.available, incoming.ring.stop)
        if self.complete and stored is not None:
            self.size = stored.size
        elif self.size is None:
            self.size = incoming.size if stored is None or stored.size is None else stored.size
        return self.available

    async def _wait_for_change(self, changed: asyncio.Event, past: int) -> None:
        """Wait until more bytes may have arrived. Raises Aborted if none will."""
        incoming = self._incoming
        if incoming.is_relayed and incoming.is_continuous(past):
            await changed.wait()
            return
        if incoming.has_ended and incoming.is_abandoned:
            raise Aborted("the runtime has disconnected")
        stored = await self._open_stored()
        if stored is None:
            if incoming.has_ended:
                raise Aborted("the runtime has nothing of the content")
            if incoming.has_missed(past):
                await self._open_missed(past)
                return
            pause = _RELAYED_POLL_INTERVAL if incoming.is_relayed else _POLL_INTERVAL
            await _wait_for_any(changed.wait(), asyncio.sleep(pause))
        elif stored.available <= past and not stored.complete:
            await _wait_for_any(changed.wait(), self._wait_for_stored(stored, past))

    async def _wait_for_stored(self, stored: Content, past: int) -> None:
        """Wait until the store shows more than `past` bytes. If its copy is discarded, another one may come soon."""
        try:
            await stored.wait(past)
        except Aborted:
            if self._incoming.has_ended:
                raise
            self._incoming.readable = 0
            await self._drop_stored()
            await asyncio.sleep(_POLL_INTERVAL)

    async def _open_missed(self, offset: int) -> Content:
        """Return what the store shows of content whose byte at `offset` is not in the ring. Raises Aborted."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SHOW_TIMEOUT
        while (stored := await self._open_stored()) is None:
            if loop.time() >= deadline or self._open is None or self._incoming.has_ended:
                raise Aborted(f"byte {offset} is no longer in memory, and the store does not show it")
            await asyncio.sleep(_POLL_INTERVAL)
            self._check_usable()
        return stored

    async def _open_stored(self) -> Content | None:
        """Return what the store shows of the content; None if it shows nothing."""
        async with self._opening:
            if self._stored is None and self._open is not None:
                with suppress(NotFound, StoreUnavailable):
                    self._stored = await self._open()
            if self._is_closed:
                await self._drop_stored()
            return self._stored

    async def _drop_stored(self) -> None:
        stored, self._stored = self._stored, None
        if stored is not None:
            await stored.aclose()


async def _wait_for_any(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait until one of `waits` ends, and cancel the others. Raises its error."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            each.result()
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.wait(tasks)
