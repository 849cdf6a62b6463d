"""Sends content of this host's store, whole or while it arrives. The kernel sends it if possible."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from peili.mirror.content.files import is_cached
from peili.mirror.doors.open_content import ContentOpener, OpenContent
from peili.mirror.doors.response import ResponseWriter
from peili.mirror.errors import Aborted, NotFound
from peili.mirror.limits import KIB, MIB
from peili.mirror.oci.ranges import MultipartByteranges, Span
from peili.mirror.oci.references import OCTET_STREAM, Descriptor, Digest, is_manifest
from peili.mirror.peer_api.keys import InFlight, availability_headers
from peili.mirror.server.socket_writer import SocketWriter

PIECE = 256 * KIB
"""Bytes that are read and sent at once, if they are sent in messages. Larger pieces cost two to three times the system
time, because each is copied several times.
"""
WRITER_PIECE = MIB
"""The same for a socket writer that does not take the file itself, as over TLS. Measured on a file system in memory,
whose files a thread reads: 2.4 CPU seconds per GiB, and 3.4 with 256 KiB.
"""
WINDOW = 8 * MIB
"""Bytes that one sendfile sends. Before, they are known to be in memory, and the file to be unchanged."""
TAIL = 64 * KIB
"""Bytes at the end of a sendfile transfer that are read, checked and then sent as a piece."""


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
    fd, offset, writer = content.fileno(), span.start, response.socket_writer
    if fd is not None and writer is not None and writer.can_splice:
        offset = await _send_file(writer, content, fd, span)
    size = PIECE if writer is None or writer.can_splice else WRITER_PIECE
    async with aclosing(read_pieces(content, Span(offset, span.stop, span.size), size)) as pieces:
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
