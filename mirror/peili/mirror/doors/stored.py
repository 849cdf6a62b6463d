"""Answers from what this host's store holds; both doors do."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from peili.mirror.doors.reply import Reply
from peili.mirror.errors import Aborted
from peili.mirror.limits import KIB
from peili.mirror.ranges import Span
from peili.mirror.references import Descriptor
from peili.mirror.store import Content, Store

PIECE = 256 * KIB
"""Bytes read and sent at once: large enough that the hop to a thread and back does not count."""


async def send_stored(reply: Reply, store: Store, descriptor: Descriptor) -> None:
    """Answer with content that `store` holds whole. Raises NotFound and StoreUnavailable before anything is sent."""
    if await reply.not_modified(descriptor.digest):
        return
    span = reply.span(descriptor.digest, descriptor.size)
    if not reply.wants_body:
        await reply.content(descriptor, span, _nothing(), partial=False)
        return
    partial = reply.range(descriptor.digest) is not None
    async with await store.open(descriptor.digest) as content, aclosing(read(content, span)) as pieces:
        await reply.content(descriptor, span, pieces, partial=partial)


async def read(content: Content, span: Span, piece: int = PIECE) -> AsyncGenerator[bytes, None]:
    """The bytes of `span`, in pieces. Raises Aborted where content turns out shorter than it said, StoreUnavailable."""
    offset = span.start
    while offset < span.stop:
        # Each piece has a buffer of its own: a transport may keep what it was given until the socket takes it.
        buffer = bytearray(min(piece, span.stop - offset))
        count = await content.readinto(offset, memoryview(buffer))
        if count == 0:
            raise Aborted(f"content ends at byte {offset} of {span.size}")
        offset += count
        yield bytes(memoryview(buffer)[:count])


async def _nothing() -> AsyncGenerator[bytes, None]:
    return
    yield b""
