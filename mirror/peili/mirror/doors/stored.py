"""Answers from what this host's store holds; both doors do."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from peili.mirror.content.files import is_cached
from peili.mirror.doors.opened import OpenContent
from peili.mirror.doors.opening import ContentOpener
from peili.mirror.doors.response import ResponseWriter
from peili.mirror.errors import Aborted
from peili.mirror.limits import KIB, MIB
from peili.mirror.oci.multipart import Multipart
from peili.mirror.oci.ranges import Span
from peili.mirror.oci.references import Descriptor
from peili.mirror.server.socket_writer import SocketWriter

PIECE = 256 * KIB
"""Bytes read and sent at once: large enough that a hop to a thread and back does not count. Measured over TLS,
larger ones cost two to three times the system time.
"""
WINDOW = 8 * MIB
"""Bytes that sendfile is told to send at once, after they were seen to be in memory and the file unchanged."""
TAIL = 64 * KIB
"""Bytes at the end that are read, and checked once they are, before they are sent; less is not worth a sendfile."""


async def send_stored(response: ResponseWriter, opener: ContentOpener, descriptor: Descriptor) -> None:
    """Answer with content that the store of `opener` holds whole. Raises NotFound and StoreUnavailable before anything
    is sent.
    """
    if await response.not_modified(descriptor.digest):
        return
    spans = response.spans(descriptor.digest, descriptor.size)
    if len(spans) > 1:
        await _send_parts(response, opener, descriptor, spans)
        return
    partial = bool(spans)
    span = spans[0] if partial else Span.whole(descriptor.size)
    if not response.wants_body:
        await response.begin(descriptor, span, partial=False)
        return
    async with await opener.open(descriptor.digest, span) as content:
        if len(content.first) == span.length:
            await response.whole(descriptor, span, content.first, partial=partial)
            return
        await response.begin(descriptor, span, partial=partial)
        await _send_content(response, content, span)
        await response.end()


async def _send_parts(
    response: ResponseWriter, opener: ContentOpener, descriptor: Descriptor, spans: Sequence[Span]
) -> None:
    """Each part as if it were asked for alone; no more of one is in memory at once than of the whole would be."""
    parts = Multipart(descriptor.media_type, spans)
    async with await opener.open(descriptor.digest, spans[0]) as content:
        await response.begin_parts(descriptor, parts)
        for head, span in parts:
            await response.send(head)
            await _send_content(response, content, span)
        await response.send(parts.end)
        await response.end()


async def _send_content(response: ResponseWriter, content: OpenContent, span: Span) -> None:
    fd, offset = content.fileno(), span.start
    if fd is not None:
        if response.socket_writer is not None:
            offset = await _send_file(response.socket_writer, content, fd, span)
        elif response.takes_paths and span.is_whole and sys.platform == "linux":
            # Not the name that the file has: this one stands for what is open, though it be removed. And with our own
            # id, not "self": a server may leave it to a process of its own.
            await response.send_path(f"/proc/{os.getpid()}/fd/{fd}")
    async with aclosing(read(content, Span(offset, span.stop, span.size))) as pieces:
        async for piece in pieces:
            await response.send(piece)
            # A server that knows that the client has gone takes all at once. So this would read on to the end, and let
            # nobody have a turn meanwhile, not even who ends it.
            await asyncio.sleep(0)


async def _send_file(socket_writer: SocketWriter, content: OpenContent, fd: int, span: Span) -> int:
    """Let the kernel send all but the last of `span`; where that begins.

    Content checks itself only when it is read. So a byte of each window is, the last: in a thread where it has to come
    from the disk, for which sendfile would let the whole loop wait. What changes later is noticed at the next window,
    at the latest with the tail, which is withheld then.

    That read is bounded. What sendfile reads itself is not: nothing ends a system call, in which the loop stands still;
    that is the watchdog's matter.
    """
    byte = memoryview(bytearray(1))
    offset = span.start
    while (count := min(WINDOW, span.stop - TAIL - offset)) > 0:
        if not is_cached(fd, offset + count - 1):
            os.posix_fadvise(fd, offset, 2 * WINDOW, os.POSIX_FADV_WILLNEED)  # reads ahead, and does not wait for it
        await content.readinto(offset + count - 1, byte)
        if await socket_writer.sendfile(fd, offset, count) < count:
            raise Aborted(f"content ends before byte {offset + count} of {span.size}")
        offset += count
    return offset


async def read(content: OpenContent, span: Span, piece: int = PIECE) -> AsyncGenerator[memoryview, None]:
    """The bytes of `span`, in pieces, each good until the next. Raises Aborted where content turns out shorter than it
    said, StoreUnavailable.
    """
    buffer = memoryview(bytearray(min(piece, span.length)))
    offset = span.start
    while offset < span.stop:
        count = await content.readinto(offset, buffer[: span.stop - offset])
        if count == 0:
            raise Aborted(f"content ends at byte {offset} of {span.size}")
        offset += count
        yield buffer[:count]
