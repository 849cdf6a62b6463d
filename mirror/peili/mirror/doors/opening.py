"""Opens a store's content for an answer, and waits no longer for its first byte than there may be another answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from peili.mirror.errors import Aborted, NotFound, StoreUnavailable
from peili.mirror.limits import Limits
from peili.mirror.ranges import Span
from peili.mirror.references import Digest
from peili.mirror.store import Content, Store
from peili.mirror.tasks import Tasks


class Opener:
    """Opens content of `store`. `limited` hears of each opening that took too long.

    That one is cancelled, and not waited for: a thread that reads can't be stopped. What it opened is closed when it
    ends.
    """

    def __init__(self, store: Store, limits: Limits, limited: Callable[[str], None]) -> None:
        self._store = store
        self._patience = limits.first_byte_timeout
        self._limited = limited
        self._openings = Tasks()  # whoever waits is told of a failure; where nobody does any more, nobody has to be

    async def open(self, digest: Digest, span: Span) -> Content:
        """The content of `digest`, with the first byte of `span` in hand; the caller closes it.

        Raises NotFound; StoreUnavailable, also where it takes longer than ``limits.first_byte_timeout`` seconds.
        """
        opening = self._openings.start(_open(self._store, digest, span))
        try:
            await asyncio.wait([opening], timeout=self._patience)
        except asyncio.CancelledError:
            if not opening.cancel() and not opening.cancelled() and opening.exception() is None:
                await opening.result().aclose()
            raise
        if opening.cancel():
            self._limited("first_byte_timeout")
            raise StoreUnavailable("the store has no first byte in time")
        return opening.result()

    async def drain(self, timeout: float) -> None:
        """Wait `timeout` seconds for openings to end that nobody waits for any more."""
        await self._openings.drain(timeout)


async def _open(store: Store, digest: Digest, span: Span) -> Content:
    content = await store.open(digest)
    try:
        await _begin(content, span)
    except BaseException:
        await content.aclose()
        raise
    return content


async def _begin(content: Content, span: Span) -> None:
    try:
        there = not span.length or await content.readinto(span.start, memoryview(bytearray(1)))
    except Aborted as error:
        raise NotFound(f"not here any more: {error}") from error
    if not there:
        raise NotFound("not here any more")
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError  # the store took no notice of it; there is nobody who would close the content
