"""Checks what `Content` promises, of whole content and of content that is still arriving."""

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
from peili.mirror.testing.promises import (
    IN_TIME,
    Promises,
    expect,
    expect_cancellable,
    expect_raises,
    keep,
)


class Arrival(ABC):
    """How the author of a store lets content arrive, as their backend would. Ends with `commit` or `abort`."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """The next bytes arrive."""

    @abstractmethod
    async def commit(self) -> None:
        """All has arrived: it is whole now."""

    @abstractmethod
    async def abort(self) -> None:
        """The rest will never come."""


@dataclass(frozen=True, slots=True)
class ContentSubject:
    """Content to be checked: `data` is what it is, or with `arrival` will be. Of that, nothing has arrived yet.

    `data` has at least 1,000 bytes.
    """

    content: Content
    data: bytes
    arrival: Arrival | None = None


ContentFactory = Callable[[], AbstractAsyncContextManager[ContentSubject]]
"""Gives content of its own at each call, and cleans up after it; closing the content twice is part of the checks."""


async def check_content(factory: ContentFactory, *, within: float = IN_TIME) -> None:
    """Check every promise of `Content`, each on content of its own. Raises ConformanceError for the first broken one.

    Call it once with a factory of whole content, and once with one of content that arrives, if the store has such.
    """
    async with factory() as subject:
        arriving = subject.arrival is not None
    for promise, check in ARRIVING if arriving else WHOLE:
        async with factory() as subject:
            await keep(promise, check(subject), within)
            await keep(CLOSING, _closed_twice(subject.content), within)


async def _closed_twice(content: Content) -> None:
    await content.aclose()
    await content.aclose()


async def read(content: Content, offset: int, size: int) -> bytes:
    """What one `readinto` gives."""
    buffer = bytearray(size)
    return bytes(buffer[: await content.readinto(offset, memoryview(buffer))])


async def read_range(content: Content, offset: int, end: int) -> bytes:
    """All from `offset` to `end`, in as many reads as it takes."""
    data = bytearray()
    while offset + len(data) < end:
        piece = await read(content, offset + len(data), end - offset - len(data))
        expect(piece, f"0 bytes were read at {offset + len(data)}, with {content.available} available")
        data += piece
    return bytes(data)


# Whole content


async def _whole_attributes(subject: ContentSubject) -> None:
    content, size = subject.content, len(subject.data)
    expect(content.complete is True, f"complete is {content.complete!r}")
    expect(content.size == size and content.available == size, f"{content.size=}, {content.available=}, not {size}")


async def _whole_bytes(subject: ContentSubject) -> None:
    size = len(subject.data)
    for offset, end in [(0, size), (0, 1), (1, 2), (size // 3, size // 2), (size - 1, size), (0, size // 2)]:
        expect(await read_range(subject.content, offset, end) == subject.data[offset:end], f"not so for {offset}-{end}")


async def _whole_end(subject: ContentSubject) -> None:
    size = len(subject.data)
    for offset in (size, size + 1, size * 3):
        expect(await read(subject.content, offset, 10) == b"", f"bytes were read at {offset} of {size}")
    tail = await read(subject.content, size - 5, 100)
    expect(tail and subject.data[-5:].startswith(tail), "the last bytes were not read with a buffer that is longer")


async def _whole_empty_buffer(subject: ContentSubject) -> None:
    expect(await subject.content.readinto(0, memoryview(bytearray())) == 0, "something was read into no buffer")


async def _whole_wait(subject: ContentSubject) -> None:
    size = len(subject.data)
    for past in (0, size - 1, size, size + 100):
        expect(await subject.content.wait(past) == size, f"wait({past}) did not give {size}")


async def _whole_concurrent(subject: ContentSubject) -> None:
    size = len(subject.data)
    ranges = [(size * n // 20, size * (n + 1) // 20) for n in range(20)]
    pieces = await asyncio.gather(*(read_range(subject.content, *each) for each in ranges), subject.content.wait(size))
    expect(b"".join(piece for piece in pieces if isinstance(piece, bytes)) == subject.data, "the pieces do not fit")


async def _whole_fileno(subject: ContentSubject) -> None:
    fd = subject.content.fileno()
    _expect_file(fd, subject.data)
    if fd is not None:
        os.lseek(fd, 3, os.SEEK_SET)
        expect(await read(subject.content, 0, 4) == subject.data[:4], "readinto minds the file position")


def _expect_file(fd: int | None, data: bytes) -> None:
    """Where there is a file, it begins with `data`."""
    if fd is not None:
        expect(stat.S_ISREG(os.fstat(fd).st_mode), "it is no regular file")
        expect(os.pread(fd, len(data), 0) == data, "the file has other bytes")


async def _whole_cancel(subject: ContentSubject) -> None:
    await expect_cancellable(lambda: read(subject.content, 0, len(subject.data)))
    await _whole_bytes(subject)


# Content that is still arriving


def _arrival(subject: ContentSubject) -> Arrival:
    expect(subject.arrival is not None, "the factory gave whole content now")
    assert subject.arrival is not None  # noqa: S101 - for type checkers; `expect` has just made sure
    return subject.arrival


async def _arriving_attributes(subject: ContentSubject) -> None:
    content = subject.content
    expect(content.complete is False, f"complete is {content.complete!r} before anything has arrived")
    expect(content.available == 0, f"available is {content.available} before anything has arrived")
    expect(content.size in (None, len(subject.data)), f"size is {content.size}, not {len(subject.data)} or None")
    expect(await read(content, 0, 10) == b"", "bytes were read before any have arrived")


async def _arriving_bytes(subject: ContentSubject) -> None:
    arrival, content, size = _arrival(subject), subject.content, len(subject.data)
    seen = 0
    for start in range(0, size, size // 4):
        await arrival.write(subject.data[start : start + size // 4])
        end = min(size, start + size // 4)
        while seen < end:
            seen = await _grown(content, seen)
            expect(seen <= end, f"{seen} bytes are available where {end} have arrived")
            expect(content.size in (None, size), f"size is {content.size}, not {size} or None")
            expect(await read_range(content, 0, seen) == subject.data[:seen], "other bytes were read than arrived")
    await arrival.commit()
    expect(await content.wait(size) == size, "wait gave another size than that of the whole")
    expect(content.complete and content.size == size, f"{content.complete=}, {content.size=} once all is there")
    expect(await read_range(content, 0, size) == subject.data, "other bytes were read once it was whole")
    expect(await read(content, size, 10) == b"", "bytes were read past the end")


async def _grown(content: Content, seen: int) -> int:
    now = await content.wait(seen)
    expect(now > seen, f"wait({seen}) gave {now}, with complete {content.complete}")
    expect(content.available >= now, f"available is {content.available} after wait gave {now}")
    return now


async def _arriving_wait(subject: ContentSubject) -> None:
    arrival, content = _arrival(subject), subject.content
    await arrival.write(subject.data[:100])
    await content.wait(0)
    waiting = [asyncio.ensure_future(content.wait(past)) for past in (100, 100, 150)]
    done, _ = await asyncio.wait(waiting, timeout=0.1)
    try:
        expect(not done, "wait(100) returned while 100 bytes were there")
        await arrival.write(subject.data[100:200])
        expect(all(now > 150 for now in await asyncio.gather(*waiting)), "wait gave less than it had waited for")
    finally:
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)


async def _arriving_shrinks(subject: ContentSubject) -> None:
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


async def _arriving_end(subject: ContentSubject) -> None:
    arrival, content = _arrival(subject), subject.content
    await arrival.write(subject.data[:100])
    await content.wait(0)
    for beyond in (0, 1, 500):
        offset = content.available + beyond
        piece = await read(content, offset, 10)
        expect(not piece or content.available > offset, f"bytes were read at {offset} of {content.available}")


async def _arriving_concurrent(subject: ContentSubject) -> None:
    arrival, content = _arrival(subject), subject.content
    await arrival.write(subject.data[:100])
    seen = await content.wait(0)
    waiting = asyncio.ensure_future(content.wait(100))
    try:
        await asyncio.sleep(0)
        pieces = await asyncio.gather(*(read_range(content, at, seen) for at in range(0, seen, 10)))
        for at, piece in zip(range(0, seen, 10), pieces, strict=True):
            expect(piece == subject.data[at:seen], f"other bytes were read at {at} than arrived")
        expect(not waiting.done(), "wait(100) returned while 100 bytes were there")
    finally:
        waiting.cancel()
        await asyncio.wait([waiting])


async def _arriving_fileno(subject: ContentSubject) -> None:
    arrival, content, data = _arrival(subject), subject.content, subject.data
    await arrival.write(data[:100])
    _expect_file(content.fileno(), data[: await content.wait(0)])
    await arrival.write(data[100:])
    await arrival.commit()
    _expect_file(content.fileno(), data[: await content.wait(len(data) - 1)])


async def _arriving_abort(subject: ContentSubject) -> None:
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


async def _arriving_abort_bytes(subject: ContentSubject) -> None:
    arrival, content = _arrival(subject), subject.content
    await arrival.write(subject.data[:100])
    await content.wait(0)
    await arrival.abort()
    try:
        piece = await read(content, 0, 100)
    except Aborted:
        return
    expect(piece and subject.data.startswith(piece), "other bytes were read")


async def _arriving_cancel(subject: ContentSubject) -> None:
    arrival, content = _arrival(subject), subject.content
    await expect_cancellable(lambda: content.wait(0))
    await arrival.write(subject.data[:100])
    expect(await content.wait(0) > 0, "wait gave nothing after an earlier one was cancelled")


CLOSING = "aclose does not raise, however often it is called"
"""Checked after each of the others."""
WHOLE: Promises = (
    ("content that is whole is complete, with size and available its length", _whole_attributes),
    ("readinto gives the bytes that were asked for", _whole_bytes),
    ("readinto gives 0 exactly at and past the end", _whole_end),
    ("readinto takes an empty buffer", _whole_empty_buffer),
    ("wait gives available at once where the content is complete", _whole_wait),
    ("readinto and wait may be called concurrently", _whole_concurrent),
    ("fileno is None, or a regular file whose byte n is byte n of the content", _whole_fileno),
    ("readinto can be cancelled, and called again", _whole_cancel),
)
ARRIVING: Promises = (
    ("content of which nothing has arrived is empty and not complete", _arriving_attributes),
    ("available never shrinks", _arriving_shrinks),
    ("content that arrives can be read as it does, and is complete with its last byte", _arriving_bytes),
    ("readinto gives 0 at and past what is available", _arriving_end),
    ("wait returns once more than `past` bytes are there, to everyone who waits", _arriving_wait),
    ("what has arrived can be read while the rest is waited for", _arriving_concurrent),
    ("fileno is None, or a regular file whose byte n is byte n of what has arrived", _arriving_fileno),
    ("wait raises Aborted once the rest will never come", _arriving_abort),
    ("what has arrived of aborted content is read as it was, or raises Aborted", _arriving_abort_bytes),
    ("wait can be cancelled, and called again", _arriving_cancel),
)
