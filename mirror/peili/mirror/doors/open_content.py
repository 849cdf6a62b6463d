"""Opens and reads content of this host's store in bounded time, whatever the store does."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Self, TypeAlias, TypeVar

from peili.mirror.doors.manifest_memory import ManifestMemory
from peili.mirror.errors import Aborted, NotFound, PeiliError, StoreUnavailable
from peili.mirror.limits import KIB
from peili.mirror.oci.ranges import Span
from peili.mirror.oci.references import Digest
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.content import Content, read_into
from peili.mirror.plugins.interfaces import Context, Store
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.tasks import Tasks, is_own_failure

_SHORT = 64 * KIB
"""Up to this number of bytes, all are read before the response starts. If that fails, another response is possible."""
_T = TypeVar("_T")
_Opened: TypeAlias = tuple[Content, bytes]
"""Content, and the bytes that were read from it."""


class OpenContent:
    """Content of a store that is open for one response. The owner closes it.

    Every call of the store but `wait` is bounded by ``limits.stall_timeout`` seconds. An error of the store is never an
    OSError, so that the door can tell it from an error of the client's connection.

    Args:
        content: The content.
        digest: The digest of the content, for the log.
        first: The bytes that were read already.
        context: The context of the door.
    """

    def __init__(self, content: Content, digest: Digest, first: bytes, context: Context) -> None:
        self.first = first
        self._content = content
        self._digest = digest
        self._context = context
        self._is_no_file = False

    @property
    def size(self) -> int | None:
        """The whole size in bytes; None while it is not known."""
        return self._content.size

    @property
    def available(self) -> int:
        """How many bytes from the start can be read now."""
        return self._content.available

    @property
    def complete(self) -> bool:
        """Whether no more bytes than `available` will come."""
        return self._content.complete

    def fileno(self) -> int | None:
        """Return the descriptor of the regular file that the content is in. None if there is none, or if it is wrong.

        Then the bytes are read instead: a response must not be cut off because the kernel can't send a file.
        """
        if self._is_no_file:
            return None
        try:
            return _regular_file(self._content)
        except BaseException as error:
            if not is_own_failure(error):
                raise
            self._is_no_file = True
            self._context.log.exception("%s: the store's fileno failed", self._digest)
            return None

    async def readinto(self, offset: int, buffer: memoryview) -> int:
        """Read as `Content.readinto` does.

        Raises:
            Aborted: The content will never be whole.
            Unavailable: The read took too long, or the store raised an unexpected error.
        """
        read = partial(read_into, self._content, offset, buffer)
        return await self._call(read, f"the store's read at byte {offset}")

    async def wait(self, past: int) -> int:
        """Wait until more than `past` bytes are available, and return how many are.

        Raises:
            Aborted: The content has no more bytes, or none arrived within ``limits.wait_timeout`` seconds. Less would
                punish this host, and all hosts behind the reader, for a slow upstream.
            Unavailable: The store raised an unexpected error.
        """
        silence = Deadline(self._context.limits.wait_timeout)
        try:
            async with silence:
                available = await self._content.wait(past)
        except PeiliError:
            raise
        except BaseException as error:
            if not is_own_failure(error):
                raise
            if not silence.expired():
                self._context.log.exception("%s: the store's wait failed", self._digest)
                raise StoreUnavailable("the store's wait failed") from error
            self._context.limited("wait_timeout")
            raise Aborted(f"no byte arrived after byte {past} in time") from error
        if available <= past:
            raise Aborted(f"the content ends at byte {past}")
        return available

    async def aclose(self) -> None:
        """Close the content. Does not raise: the response was sent."""
        with suppress(PeiliError):
            await self._call(self._content.aclose, "the store's aclose")

    async def _call(self, function: Callable[[], Awaitable[_T]], name: str) -> _T:
        allowed = (PeiliError,)
        return await call(function, self._context, name, about=self._digest, limit="stall_timeout", allowed=allowed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class ContentOpener:
    """Opens content of the store within ``limits.first_byte_timeout`` seconds.

    If the store does not react in time, its call is cancelled but not awaited, because a store may ignore the
    cancellation. When the call ends, what it opened is closed.

    Args:
        context: The context of the door.

    Attributes:
        manifests: The manifests that were sent last.
    """

    def __init__(self, context: Context) -> None:
        self.manifests = ManifestMemory(context.limits.manifest_memory)
        self._context = context
        self._openings = Tasks()  # without a log: `open` raises the errors, and those of abandoned calls do not matter

    async def open(self, digest: Digest, span: Span | None) -> OpenContent:
        """Open the content of `digest`, and read the first byte of `span`, or all of it if it is short.

        If `span` is None, content that is still arriving is opened, too, and nothing is read.

        Raises:
            NotFound: The store does not have the content.
            Unavailable: The store did not react in time, or raised an unexpected error.
        """
        content, first = await self._open_in_time(digest, span)
        return OpenContent(content, digest, first, self._context)

    async def _open_in_time(self, digest: Digest, span: Span | None) -> _Opened:
        opening = self._openings.start(_open(self._context.store, digest, span))
        try:
            with suppress(TimeoutError):
                async with Deadline(self._context.limits.first_byte_timeout):
                    await asyncio.wait([opening])
        except asyncio.CancelledError:
            if not opening.cancel() and not opening.cancelled() and opening.exception() is None:
                content, first = opening.result()
                await OpenContent(content, digest, first, self._context).aclose()
            raise
        if opening.cancel():
            self._context.limited("first_byte_timeout")
            raise StoreUnavailable("the store did not deliver a first byte in time")
        try:
            return opening.result()
        except PeiliError:
            raise
        except BaseException as error:
            if not is_own_failure(error):
                raise
            self._context.log.exception("%s: the store failed", digest)
            raise StoreUnavailable("the store failed") from error

    async def drain(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for abandoned calls of the store to end."""
        await self._openings.drain(timeout)


async def _open(store: Store, digest: Digest, span: Span | None) -> _Opened:
    content = await (store.open(digest, partial=True) if span is None else store.open(digest))
    try:
        first = b"" if span is None else await _read_first(content, span)
        _check_cancelled()
    except BaseException:
        await content.aclose()
        raise
    return content, first


def _regular_file(content: Content) -> int | None:
    fd = content.fileno()
    if fd is not None and not stat.S_ISREG(os.fstat(fd).st_mode):
        raise ValueError(f"{type(content).__name__}.fileno returned {fd}, which is not a regular file")
    return fd


def _check_cancelled() -> None:
    """Raise CancelledError if the store ignored it. Nobody else would close the content."""
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError


async def _read_first(content: Content, span: Span) -> bytes:
    first, count = bytearray(span.length if span.length <= _SHORT else 1), 0
    try:
        while count < len(first):
            read_count = await read_into(content, span.start + count, memoryview(first)[count:])
            if not read_count:
                raise NotFound("the content is no longer available")
            count += read_count
    except Aborted as error:
        raise NotFound(f"the content is no longer available: {error}") from error
    return bytes(first)
