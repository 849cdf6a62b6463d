"""Content classes that each break one promise, with the start of the promise that the kit must name."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

from typing_extensions import override

from peili.mirror import Aborted, Content


class Wrapped(Content):
    """Content that passes everything on to other content. It breaks no promise."""

    size: int | None
    available: int
    complete: bool

    def __init__(self, content: Content) -> None:
        self.inner = content
        self._refresh()

    def _refresh(self) -> None:
        self.size, self.available, self.complete = self.inner.size, self.inner.available, self.inner.complete

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        return await self.inner.readinto(offset, buffer)

    @override
    async def wait(self, past: int) -> int:
        try:
            return await self.inner.wait(past)
        finally:
            self._refresh()

    @override
    async def aclose(self) -> None:
        await self.inner.aclose()


class NeverComplete(Wrapped):
    @override
    def _refresh(self) -> None:
        super()._refresh()
        self.complete = False


class OffByOne(Wrapped):
    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        return await super().readinto(offset + (offset == 1), buffer)


class RaisesAtTheEnd(Wrapped):
    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        read = await super().readinto(offset, buffer)
        if not read and len(buffer):
            raise EOFError
        return read


class NeedsABuffer(Wrapped):
    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        if not len(buffer):
            raise ValueError("no buffer")
        return await super().readinto(offset, buffer)


class WaitsForever(Wrapped):
    @override
    async def wait(self, past: int) -> int:
        if self.complete and past >= self.available:
            await asyncio.Event().wait()
        return await super().wait(past)


class SharesAnOffset(Wrapped):
    """Keeps the offset in an attribute across an await."""

    _offset = 0

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        self._offset = offset
        await asyncio.sleep(0)
        return await super().readinto(self._offset, buffer)


class WrongFile(Wrapped):
    def __init__(self, content: Content) -> None:
        super().__init__(content)
        self._file = os.open(__file__, os.O_RDONLY)

    @override
    def fileno(self) -> int | None:
        return self._file

    @override
    async def aclose(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class ClosesOnce(Wrapped):
    _closed = False

    @override
    async def aclose(self) -> None:
        if self._closed:
            raise RuntimeError("closed already")
        self._closed = True
        await super().aclose()


class SwallowsCancellation(Wrapped):
    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return await super().readinto(offset, buffer)


class ClaimsTooMuch(Wrapped):
    @override
    def _refresh(self) -> None:
        super()._refresh()
        self.available = max(self.available, 10)


class CompleteTooLate(Wrapped):
    @override
    async def wait(self, past: int) -> int:
        available = await super().wait(past)
        self.complete = False
        return available


class ReturnsEarly(Wrapped):
    @override
    async def wait(self, past: int) -> int:
        return await super().wait(min(past, 99))


class Shrinks(Wrapped):
    _calls = 0

    @override
    async def wait(self, past: int) -> int:
        available = await super().wait(past)
        self._calls += 1
        if self._calls % 2 == 0 and available > past + 1 and available > 400:
            self.available = 300
        return available


class PadsWithZeros(Wrapped):
    """Pads an ingest that has some bytes already."""

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        read = await super().readinto(offset, buffer)
        if read or not len(buffer) or not self.available or self.complete:
            return read
        buffer[:1] = bytes(1)
        return 1


class NoReadDuringWait(Wrapped):
    def __init__(self, content: Content) -> None:
        super().__init__(content)
        self._lock = asyncio.Lock()

    @override
    async def wait(self, past: int) -> int:
        async with self._lock:
            return await super().wait(past)

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        async with self._lock:
            return await super().readinto(offset, buffer)


class HidesAborts(Wrapped):
    @override
    async def wait(self, past: int) -> int:
        try:
            return await super().wait(past)
        except Aborted:
            return self.available


class ZeroesAborted(Wrapped):
    _aborted = False

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        read = await super().readinto(offset, buffer)
        probe = asyncio.ensure_future(self.inner.wait(offset + read))
        await asyncio.wait([probe], timeout=0.01)
        if probe.done() and not probe.cancelled() and isinstance(probe.exception(), Aborted):
            buffer[:] = bytes(len(buffer))
        probe.cancel()
        return read


class ForgetsWaiters(Wrapped):
    """Swallows the cancellation of a wait."""

    @override
    async def wait(self, past: int) -> int:
        try:
            return await super().wait(past)
        except asyncio.CancelledError:
            return 0


BROKEN_COMPLETE: dict[type[Wrapped], str] = {
    NeverComplete: "complete content has complete true",
    OffByOne: "readinto reads the requested bytes",
    RaisesAtTheEnd: "readinto returns 0 exactly at and past the end",
    NeedsABuffer: "readinto accepts an empty buffer",
    WaitsForever: "wait returns available at once",
    SharesAnOffset: "readinto and wait may be called concurrently",
    WrongFile: "fileno is None, or a regular file whose byte n is byte n of the content",
    ClosesOnce: "aclose does not raise",
    SwallowsCancellation: "readinto can be cancelled",
}
BROKEN_INGESTS: dict[type[Wrapped], str] = {
    ClaimsTooMuch: "an ingest without a byte is empty",
    CompleteTooLate: "an ingest can be read while it arrives",
    ReturnsEarly: "wait returns as soon as more than `past` bytes",
    Shrinks: "available never shrinks",
    PadsWithZeros: "readinto returns 0 at and past the available bytes",
    NoReadDuringWait: "available bytes can be read during a wait",
    WrongFile: "fileno is None, or a regular file whose byte n is byte n of the available bytes",
    HidesAborts: "wait raises Aborted",
    ZeroesAborted: "a read of aborted content",
    ForgetsWaiters: "wait can be cancelled",
}
