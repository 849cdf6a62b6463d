"""The conformance kit for `Content`, both complete and still arriving (an ingest)."""

from __future__ import annotations

import asyncio
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from peili.mirror.errors import Aborted
from peili.mirror.plugins.content import Content
from peili.mirror.testing.conformance import (
    DEFAULT_TIMEOUT,
    Promises,
    check_promise,
    expect,
    expect_cancellable,
    expect_raises,
)


class Arrival(ABC):
    """An ingest that the author of a store controls: it lets content arrive like the backend of the store does.

    It ends with `commit` or `abort`.
    """

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Append the next bytes."""

    @abstractmethod
    async def commit(self) -> None:
        """Complete the content."""

    @abstractmethod
    async def abort(self) -> None:
        """Give up the content: the rest never arrives."""


@dataclass(frozen=True, slots=True)
class ContentSubject:
    """Content to be checked.

    Attributes:
        content: The content.
        data: Its bytes, at least 1,000.
        arrival: Controls the ingest, of which nothing has arrived yet. None if the content is complete.
    """

    content: Content
    data: bytes
    arrival: Arrival | None = None


ContentFactory = Callable[[], AbstractAsyncContextManager[ContentSubject]]
"""Returns a context manager that creates new content, and cleans up on exit. The checks close the content twice."""


async def check_content(factory: ContentFactory, *, within: float = DEFAULT_TIMEOUT) -> None:
    """Check every promise of `Content`, each on new content.

    Call it once with a factory of complete content, and once with a factory of ingests if the store can show them.

    Args:
        factory: Creates the content.
        within: Seconds in which each promise must be kept, by default 30.

    Raises:
        ConformanceError: A promise is broken; the first one that was found.
    """
    async with factory() as subject:
        is_ingest = subject.arrival is not None
    for promise, check in INGEST if is_ingest else COMPLETE:
        async with factory() as subject:
            await check_promise(promise, check(subject), within)
            await check_promise(CLOSING, _close_twice(subject.content), within)


async def _close_twice(content: Content) -> None:
    await content.aclose()
    await content.aclose()


async def read(content: Content, offset: int, size: int) -> bytes:
    """Return the bytes of one `readinto`."""
    buffer = bytearray(size)
    return bytes(buffer[: await content.readinto(offset, memoryview(buffer))])


async def read_range(content: Content, offset: int, end: int) -> bytes:
    """Return the bytes from `offset` to `end`, in several reads if needed."""
    data = bytearray()
    while offset + len(data) < end:
        piece = await read(content, offset + len(data), end - offset - len(data))
        expect(piece, f"0 bytes were read at {offset + len(data)}, with {content.available} available")
        data += piece
    return bytes(data)


# Complete content


async def _complete_attributes(subject: ContentSubject) -> None:
    content, size = subject.content, len(subject.data)
    expect(content.complete is True, f"complete is {content.complete!r}")
    expect(content.size == size and content.available == size, f"{content.size=}, {content.available=}, not {size}")


async def _complete_bytes(subject: ContentSubject) -> None:
    size = len(subject.data)
    for offset, end in [(0, size), (0, 1), (1, 2), (size // 3, size // 2), (size - 1, size), (0, size // 2)]:
        expect(
            await read_range(subject.content, offset, end) == subject.data[offset:end],
            f"wrong at {offset}-{end}",
        )


async def _complete_end(subject: ContentSubject) -> None:
    size = len(subject.data)
    for offset in (size, size + 1, size * 3):
        expect(await read(subject.content, offset, 10) == b"", f"bytes were read at {offset} of {size}")
    tail = await read(subject.content, size - 5, 100)
    expect(tail and subject.data[-5:].startswith(tail), "the last bytes were not read with a buffer that is longer")


async def _complete_empty_buffer(subject: ContentSubject) -> None:
    expect(await subject.content.readinto(0, memoryview(bytearray())) == 0, "something was read into no buffer")


async def _complete_wait(subject: ContentSubject) -> None:
    size = len(subject.data)
    for past in (0, size - 1, size, size + 100):
        expect(await subject.content.wait(past) == size, f"wait({past}) did not return {size}")


async def _complete_concurrent(subject: ContentSubject) -> None:
    size = len(subject.data)
    ranges = [(size * n // 20, size * (n + 1) // 20) for n in range(20)]
    pieces = await asyncio.gather(*(read_range(subject.content, *each) for each in ranges), subject.content.wait(size))
    expect(
        b"".join(piece for piece in pieces if isinstance(piece, bytes)) == subject.data,
        "the pieces are wrong",
    )


async def _complete_fileno(subject: ContentSubject) -> None:
    fd = subject.content.fileno()
    _expect_file(fd, subject.data)
    if fd is not None:
        os.lseek(fd, 3, os.SEEK_SET)
        expect(await read(subject.content, 0, 4) == subject.data[:4], "readinto depends on the file position")


def _expect_file(fd: int | None, data: bytes) -> None:
    """Raise BrokenPromise unless the file, if there is one, starts with `data`."""
    if fd is not None:
        expect(stat.S_ISREG(os.fstat(fd).st_mode), "it is no regular file")
        expect(os.pread(fd, len(data), 0) == data, "the file has other bytes")


async def _complete_cancel(subject: ContentSubject) -> None:
    await expect_cancellable(lambda: read(subject.content, 0, len(subject.data)))
    await _complete_bytes(subject)


# Ingests


def _arrival(subject: ContentSubject) -> Arrival:
    expect(subject.arrival is not None, "the factory returned complete content this time")
    assert subject.arrival is not None  # noqa: S101 - for type checkers; `expect` has just made sure
    return subject.arrival


async def _ingest_attributes(subject: ContentSubject) -> None:
    content = subject.content
    expect(content.complete is False, f"complete is {content.complete!r} before any byte has arrived")
    expect(content.available == 0, f"available is {content.available} before any byte has arrived")
    expect(content.size in (None, len(subject.data)), f"size is {content.size}, not {len(subject.data)} or None")
    expect(await read(content, 0, 10) == b"", "bytes were read before any have arrived")


async def _ingest_bytes(subject: ContentSubject) -> None:
    arrival, content, size = _arrival(subject), subject.content, len(subject.data)
    seen = 0
    for start in range(0, size, size // 4):
        await arrival.write(subject.data[start : start + size // 4])
        end = min(size, start + size // 4)
        while seen < end:
            seen = await _grown(content, seen)
            expect(seen <= end, f"{seen} bytes are available where {end} have arrived")
            expect(content.size in (None, size), f"size is {content.size}, not {size} or None")
            expect(await read_range(content, 0, seen) == subject.data[:seen], "other bytes were read than had arrived")
    await arrival.commit()
    expect(await content.wait(size) == size, "wait did not return the size of the content")
    expect(content.complete and content.size == size, f"{content.complete=}, {content.size=} at the end")
    expect(await read_range(content, 0, size) == subject.data, "other bytes were read at the end")
    expect(await read(content, size, 10) == b"", "bytes were read past the end")


async def _grown(content: Content, seen: int) -> int:
    now = await content.wait(seen)
    expect(now > seen, f"wait({seen}) returned {now}, with complete {content.complete}")
    expect(content.available >= now, f"available is {content.available} after wait returned {now}")
    return now


async def _ingest_wait(subject: ContentSubject) -> None:
    arrival, content = _arrival(subject), subject.content
    await arrival.write(subject.data[:100])
    await content.wait(0)
    waiting = [asyncio.ensure_future(content.wait(past)) for past in (100, 100, 150)]
    done, _ = await asyncio.wait(waiting, timeout=0.1)
    try:
        expect(not done, "wait(100) returned while 100 bytes were available")
        await arrival.write(subject.data[100:200])
        expect(all(now > 150 for now in await asyncio.gather(*waiting)), "wait returned too small a number")
    finally:
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)


async def _ingest_shrinks(subject: ContentSubject) -> None:
    arrival, content = _arrival(subject), subject.content
    most = 0
    for start in range(0, len(subject.data), 400):
        await arrival.write(subject.data[start : start + 400])
        await content.wait(most)
        expect(content.available >= most, f"available went from {most} to {content.available}")
        most = content.available
    await arrival.commit()
    await content.wait(most)
    expect(content.available >= most, f"available went from {most} to {content.available} at the end")


async def _ingest_end(subject: ContentSubject) -> None:
    arrival, content = _arrival(subject), subject.content
    await arrival.write(subject.data[:100])
    await content.wait(0)
    for beyond in (0, 1, 500):
        offset = content.available + beyond
        piece = await read(content, offset, 10)
        expect(not piece or content.available > offset, f"bytes were read at {offset} of {content.available}")


async def _ingest_concurrent(subject: ContentSubject) -> None:
    arrival, content = _arrival(subject), subject.content
    await arrival.write(subject.data[:100])
    seen = await content.wait(0)
    waiting = asyncio.ensure_future(content.wait(100))
    try:
        await asyncio.sleep(0)
        pieces = await asyncio.gather(*(read_range(content, at, seen) for at in range(0, seen, 10)))
        for at, piece in zip(range(0, seen, 10), pieces, strict=True):
            expect(piece == subject.data[at:seen], f"other bytes were read at {at} than had arrived")
        expect(not waiting.done(), "wait(100) returned while 100 bytes were available")
    finally:
        waiting.cancel()
        await asyncio.wait([waiting])


async def _ingest_fileno(subject: ContentSubject) -> None:
    arrival, content, data = _arrival(subject), subject.content, subject.data
    await arrival.write(data[:100])
    _expect_file(content.fileno(), data[: await content.wait(0)])
    await arrival.write(data[100:])
    await arrival.commit()
    _expect_file(content.fileno(), data[: await content.wait(len(data) - 1)])


async def _ingest_abort(subject: ContentSubject) -> None:
    arrival, content = _arrival(subject), subject.content
    await arrival.write(subject.data[:100])
    await content.wait(0)
    waiting = asyncio.ensure_future(content.wait(100))
    await asyncio.sleep(0)
    await arrival.abort()
    await expect_raises(Aborted, waiting)
    await expect_raises(Aborted, content.wait(100))
    expect(not content.complete, "complete is true")
    expect(content.available >= 100, f"available went from 100 to {content.available}")


async def _ingest_abort_bytes(subject: ContentSubject) -> None:
    arrival, content = _arrival(subject), subject.content
    await arrival.write(subject.data[:100])
    await content.wait(0)
    await arrival.abort()
    try:
        piece = await read(content, 0, 100)
    except Aborted:
        return
    expect(piece and subject.data.startswith(piece), "other bytes were read")


async def _ingest_cancel(subject: ContentSubject) -> None:
    arrival, content = _arrival(subject), subject.content
    await expect_cancellable(lambda: content.wait(0))
    await arrival.write(subject.data[:100])
    expect(await content.wait(0) > 0, "wait returned 0 after an earlier call was cancelled")


CLOSING = "aclose does not raise, however often it is called"
"""Checked after each other promise."""
COMPLETE: Promises = (
    ("complete content has complete true, and size and available are its length", _complete_attributes),
    ("readinto reads the requested bytes", _complete_bytes),
    ("readinto returns 0 exactly at and past the end", _complete_end),
    ("readinto accepts an empty buffer", _complete_empty_buffer),
    ("wait returns available at once if the content is complete", _complete_wait),
    ("readinto and wait may be called concurrently", _complete_concurrent),
    ("fileno is None, or a regular file whose byte n is byte n of the content", _complete_fileno),
    ("readinto can be cancelled, and called again", _complete_cancel),
)
INGEST: Promises = (
    ("an ingest without a byte is empty and not complete", _ingest_attributes),
    ("available never shrinks", _ingest_shrinks),
    ("an ingest can be read while it arrives, and is complete with its last byte", _ingest_bytes),
    ("readinto returns 0 at and past the available bytes", _ingest_end),
    ("wait returns as soon as more than `past` bytes are available, to every caller", _ingest_wait),
    ("available bytes can be read during a wait for more", _ingest_concurrent),
    ("fileno is None, or a regular file whose byte n is byte n of the available bytes", _ingest_fileno),
    ("wait raises Aborted if the rest never arrives", _ingest_abort),
    ("a read of aborted content returns the same bytes as before, or raises Aborted", _ingest_abort_bytes),
    ("wait can be cancelled, and called again", _ingest_cancel),
)
