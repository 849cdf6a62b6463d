"""Sends content of this host's store: opens it, reads it in bounded time, and lets the kernel send it if possible."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Self, TypeAlias, TypeVar

from peili.mirror.content.files import is_cached
from peili.mirror.doors.manifest_memory import ManifestMemory
from peili.mirror.doors.response import ResponseWriter
from peili.mirror.errors import Aborted, NotFound, PeiliError, StoreUnavailable
from peili.mirror.limits import KIB, MIB
from peili.mirror.oci.ranges import MultipartByteranges, Span
from peili.mirror.oci.references import OCTET_STREAM, Descriptor, Digest, is_manifest
from peili.mirror.peer_api.keys import InFlight, availability_headers
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.content import Content
from peili.mirror.plugins.interfaces import Context, Store
from peili.mirror.server.socket_writer import SocketWriter
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.tasks import Tasks

PIECE = 256 * KIB
"""Bytes that are read and sent at once, if they are not sent by sendfile. At this size, the cost of the thread that
reads is negligible. Measured over TLS: larger pieces cost two to three times the system time.
"""
WINDOW = 8 * MIB
"""Bytes that one sendfile sends. Before, they are known to be in memory, and the file to be unchanged."""
TAIL = 64 * KIB
"""Bytes at the end of a sendfile transfer that are read, checked and then sent as a piece."""
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
        """Return the file descriptor of the content, if it has one."""
        return self._content.fileno()

    async def readinto(self, offset: int, buffer: memoryview) -> int:
        """Read as `Content.readinto` does.

        Raises:
            Aborted: The content will never be whole.
            Unavailable: The read took too long, or the store raised an unexpected error.
        """
        read = partial(self._content.readinto, offset, buffer)
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
        except Exception as error:  # a plug-in may raise anything
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
        except (Exception, asyncio.CancelledError) as error:  # the store may cancel its own task
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


def _check_cancelled() -> None:
    """Raise CancelledError if the store ignored it. Nobody else would close the content."""
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError


async def _read_first(content: Content, span: Span) -> bytes:
    first, count = bytearray(span.length if span.length <= _SHORT else 1), 0
    try:
        while count < len(first):
            read_count = await content.readinto(span.start + count, memoryview(first)[count:])
            if not read_count:
                raise NotFound("the content is no longer available")
            count += read_count
    except Aborted as error:
        raise NotFound(f"the content is no longer available: {error}") from error
    return bytes(first)


async def send_stored(response: ResponseWriter, opener: ContentOpener, descriptor: Descriptor) -> None:
    """Answer a GET request with content that the store has whole.

    Raises:
        NotFound: The store does not have the content. Nothing was sent.
        Unavailable: The store failed. If the response has started, it is cut off.
        Aborted: The content is shorter than the store stated. The response is cut off.
    """
    if await response.send_not_modified(descriptor.digest):
        return
    spans = response.spans(descriptor.digest, descriptor.size)
    if len(spans) > 1:
        await _send_parts(response, opener, descriptor, spans)
        return
    is_partial = bool(spans)
    span = spans[0] if is_partial else Span.whole(descriptor.size)
    manifest = opener.manifests.get(descriptor.digest)
    if manifest is not None and len(manifest) == descriptor.size:
        await response.send_whole(descriptor, span, manifest[span.start : span.stop], is_partial=is_partial)
        return
    async with await opener.open(descriptor.digest, span) as content:
        if len(content.first) == span.length:
            if is_manifest(descriptor.media_type) and span.is_whole:
                opener.manifests.add(descriptor.digest, content.first)
            await response.send_whole(descriptor, span, content.first, is_partial=is_partial)
            return
        await response.start(descriptor, span, is_partial=is_partial)
        await _send_span(response, content, span)
        await response.end()


async def send_growing(response: ResponseWriter, content: OpenContent, digest: Digest, state: InFlight) -> None:
    """Answer a request with content that this host may have only in part so far. The rest is sent as it arrives.

    Args:
        response: Writes the response.
        content: The content.
        digest: Its digest.
        state: How the content arrives here, for the headers of the response.

    Raises:
        NotFound: The size of the content is not known. Nothing was sent.
        HTTPError: 416, the content has no byte of the requested range.
        Unavailable: The store failed. If the response has started, it is cut off.
        Aborted: The rest does not arrive in time, or never will. The response is cut off.
    """
    if content.size is None:
        raise NotFound(f"the size of {digest} is not known yet")
    descriptor = Descriptor(OCTET_STREAM, digest, content.size)
    described = availability_headers(None) if content.complete else state.headers()
    headers = [(name.lower().encode(), value.encode()) for name, value in described.items()]
    if response.is_head:
        await response.send_head(descriptor, headers)
        return
    if await response.send_not_modified(digest):
        return
    span = response.span(digest, content.size)
    await response.start(descriptor, span, is_partial=not span.is_whole, more_headers=headers)
    offset = span.start
    while offset < span.stop:
        available = content.available if content.available > offset else await content.wait(offset)
        stop = min(available, span.stop)
        await _send_available(response, content, Span(offset, stop, span.size))
        offset = stop
    await response.end()


async def _send_parts(
    response: ResponseWriter, opener: ContentOpener, descriptor: Descriptor, spans: Sequence[Span]
) -> None:
    """Send several parts one after the other. Memory use is the same as for the whole content."""
    parts = MultipartByteranges(descriptor.media_type, spans)
    async with await opener.open(descriptor.digest, spans[0]) as content:
        await response.start_parts(descriptor, parts)
        for head, span in parts:
            await response.send(head)
            await _send_span(response, content, span)
        await response.send(parts.end)
        await response.end()


async def _send_span(response: ResponseWriter, content: OpenContent, span: Span) -> None:
    fd = content.fileno()
    can_send_path = response.can_send_path and span.is_whole and sys.platform == "linux"
    if fd is not None and response.socket_writer is None and can_send_path:
        # Not the name of the file: this path stands for the open file, even if the file is removed. And with our own
        # process id, not "self": a server may leave the work to another process.
        await response.send_path(f"/proc/{os.getpid()}/fd/{fd}")
    await _send_available(response, content, span)


async def _send_available(response: ResponseWriter, content: OpenContent, span: Span) -> None:
    """Send bytes that can be read now."""
    fd, offset = content.fileno(), span.start
    if fd is not None and response.socket_writer is not None:
        offset = await _send_file(response.socket_writer, content, fd, span)
    async with aclosing(read_pieces(content, Span(offset, span.stop, span.size))) as pieces:
        async for piece in pieces:
            await response.send(piece)
            # A server that knows that the client has disconnected accepts everything at once. Without this line, the
            # loop would read on to the end, and no other task would run, not even the one that ends this request.
            await asyncio.sleep(0)


async def _send_file(socket_writer: SocketWriter, content: OpenContent, fd: int, span: Span) -> int:
    """Let the kernel send all bytes of `span` except its tail. Return the offset of the tail.

    Content checks itself only when it is read. So the last byte of each window is read first. If it is not in memory,
    a thread reads it, because sendfile would block the whole event loop while it waits for the disk. If the file
    changes later, the next window notices that, at the latest the tail, which is withheld then.

    This read has a deadline. What sendfile itself reads has none: nothing can end a system call, and the event loop
    stands still meanwhile. The watchdog exists for that case.
    """
    byte = memoryview(bytearray(1))
    offset = span.start
    while (count := min(WINDOW, span.stop - TAIL - offset)) > 0:
        if not is_cached(fd, offset + count - 1):
            os.posix_fadvise(fd, offset, 2 * WINDOW, os.POSIX_FADV_WILLNEED)  # starts to read ahead, does not wait
        await content.readinto(offset + count - 1, byte)
        if await socket_writer.sendfile(fd, offset, count) < count:
            raise Aborted(f"content ends before byte {offset + count} of {span.size}")
        offset += count
    return offset


async def read_pieces(content: OpenContent, span: Span, size: int = PIECE) -> AsyncGenerator[memoryview, None]:
    """Yield the bytes of `span` in pieces of up to `size` bytes. Each piece is valid until the next one.

    Raises:
        Aborted: The content is shorter than the store stated.
        Unavailable: The store failed.
    """
    buffer = memoryview(bytearray(min(size, span.length)))
    offset = span.start
    while offset < span.stop:
        count = await content.readinto(offset, buffer[: span.stop - offset])
        if count == 0:
            raise Aborted(f"content ends at byte {offset} of {span.size}")
        offset += count
        yield buffer[:count]
