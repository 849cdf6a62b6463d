"""Opens a store's content for an answer, and waits no longer for its first bytes than there may be another answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from peili.mirror.doors.opened import OpenContent, failed
from peili.mirror.errors import Aborted, NotFound, PeiliError, StoreUnavailable
from peili.mirror.limits import KIB, Limits
from peili.mirror.oci.ranges import Span
from peili.mirror.oci.references import Digest
from peili.mirror.plugins.content import Content
from peili.mirror.plugins.interfaces import Store
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.tasks import Tasks

SHORT = 64 * KIB
"""Bytes up to which all that is wanted is read before the answer begins: where that fails, there is another answer."""
_First: TypeAlias = tuple[Content, bytes]


class ContentOpener:
    """Opens content of `store`. `limited` hears of each opening that took too long.

    That one is cancelled, and not waited for: a store may take no notice of it. What it opened is closed when it ends.
    """

    def __init__(self, store: Store, limits: Limits, limited: Callable[[str], None], log: logging.Logger) -> None:
        self._store = store
        self._limits = limits
        self._limited = limited
        self._log = log
        self._openings = Tasks()  # whoever waits is told of a failure; where nobody does any more, nobody has to be

    async def open(self, digest: Digest, span: Span) -> OpenContent:
        """The content of `digest`, with the first byte of `span` in hand, or all of a short one; the caller closes it.

        Raises NotFound; StoreUnavailable, also where it takes longer than ``limits.first_byte_timeout`` seconds, or the
        store raises what it should not.
        """
        return self._opened(digest, await self._first(digest, span))

    def _opened(self, digest: Digest, found: _First) -> OpenContent:
        content, first = found
        return OpenContent(content, digest, first=first, limits=self._limits, limited=self._limited, log=self._log)

    async def _first(self, digest: Digest, span: Span) -> _First:
        opening = self._openings.start(_open(self._store, digest, span))
        try:
            with suppress(TimeoutError):
                async with Deadline(self._limits.first_byte_timeout):
                    await asyncio.wait([opening])
        except asyncio.CancelledError:
            if not opening.cancel() and not opening.cancelled() and opening.exception() is None:
                await self._opened(digest, opening.result()).aclose()
            raise
        if opening.cancel():
            self._limited("first_byte_timeout")
            raise StoreUnavailable("the store has no first byte in time")
        try:
            return opening.result()
        except PeiliError:
            raise
        except (Exception, asyncio.CancelledError) as error:  # it was cancelled by something of its own
            raise failed(self._log, digest, error) from error

    async def drain(self, timeout: float) -> None:
        """Wait `timeout` seconds for openings to end that nobody waits for any more."""
        await self._openings.drain(timeout)


async def _open(store: Store, digest: Digest, span: Span) -> _First:
    content = await store.open(digest)
    try:
        return content, await _begin(content, span)
    except BaseException:
        await content.aclose()
        raise


async def _begin(content: Content, span: Span) -> bytes:
    first, read = bytearray(span.length if span.length <= SHORT else 1), 0
    try:
        while read < len(first):
            count = await content.readinto(span.start + read, memoryview(first)[read:])
            if not count:
                raise NotFound("not here any more")
            read += count
    except Aborted as error:
        raise NotFound(f"not here any more: {error}") from error
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError  # the store took no notice of it; there is nobody who would close the content
    return bytes(first)
