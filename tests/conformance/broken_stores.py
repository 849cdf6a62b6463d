"""Stores that each break one promise, with the start of the promise that the kit must name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from tests.conformance import broken_plugins
from tests.conformance.broken_content import Wrapped
from typing_extensions import override

from peili.mirror import (
    Content,
    Context,
    Descriptor,
    Digest,
    Gone,
    Have,
    NotFound,
    Reference,
    StoreEvent,
    StoreUnavailable,
    Synced,
)
from peili.mirror.oci.references import OCTET_STREAM
from peili.stores.memory import MemoryStore
from peili.stores.oci_layout import OciLayoutStore


class EntersOnce(broken_plugins.EntersOnce, MemoryStore):
    pass


class StaysEntered(broken_plugins.StaysEntered, MemoryStore):
    pass


class ForgetsTheFirst(broken_plugins.ForgetsTheFirst, MemoryStore):
    pass


class SlowReady(broken_plugins.SlowReady, MemoryStore):
    pass


class NeverReady(MemoryStore):
    @override
    def ready(self) -> bool:
        return False


class LeaksKeyError(MemoryStore):
    @override
    async def resolve(self, reference: Reference) -> Descriptor:
        return self._tags[reference]


class ForgetsMediaTypes(MemoryStore):
    @override
    async def describe(self, digest: Digest) -> Descriptor:
        return replace(await super().describe(digest), media_type=OCTET_STREAM)


class ResolvesToAnother(MemoryStore):
    @override
    async def resolve(self, reference: Reference) -> Descriptor:
        return replace(await super().resolve(reference), digest=Digest.of(b"another"))


class Unsorted(MemoryStore):
    @override
    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        return list(self._tags.items())


class SyncedFirst(MemoryStore):
    @override
    async def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        yield (Synced(),)
        async for events in super().watch():
            yield [event for event in events if not isinstance(event, Synced)]


class NeverGone(MemoryStore):
    @override
    async def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        async for events in super().watch():
            yield [event for event in events if not isinstance(event, Gone)]


class HidesMovedTags(MemoryStore):
    @override
    async def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        known: set[object] = set()
        async for events in super().watch():
            tags = {event.key for event in events if isinstance(event, Have) and isinstance(event.key, Reference)}
            yield [event for event in events if not isinstance(event, Have) or event.key not in known]
            known |= tags


class ReportsUnknownContent(MemoryStore):
    @override
    async def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        yield (Have(Digest.of(b"nothing"), 7),)
        async for events in super().watch():
            yield events


class ReportsIngestsAsComplete(MemoryStore):
    @override
    async def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        async for events in super().watch():
            yield [replace(event, complete=True) if isinstance(event, Have) else event for event in events]


class HidesIngests(MemoryStore):
    @override
    async def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        async for events in super().watch():
            yield [event for event in events if not isinstance(event, Have) or event.complete]


class OneWatcherEndsAll(MemoryStore):
    @override
    async def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        try:
            async for events in super().watch():
                yield events
        finally:
            self._inventory._watchers.clear()  # pyright: ignore[reportPrivateUsage] - to break it on purpose


class OneAtATime(MemoryStore):
    _busy = False

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        if self._busy:
            raise RuntimeError("one at a time")
        self._busy = True
        await asyncio.sleep(0)
        self._busy = False
        return await super().describe(digest)


class SwallowsCancellation(MemoryStore):
    @override
    async def describe(self, digest: Digest) -> Descriptor:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return await super().describe(digest)


class _ZeroedContent(Wrapped):
    def __init__(self, content: Content, store: MemoryStore, digest: Digest) -> None:
        super().__init__(content)
        self._store = store
        self._digest = digest

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        read = await super().readinto(offset, buffer)
        if self._digest not in self._store._blobs:  # pyright: ignore[reportPrivateUsage] - to break it on purpose
            buffer[:] = bytes(len(buffer))
        return read


class ZeroedWhenRemoved(MemoryStore):
    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        content = await super().open(digest, partial=partial)
        return _ZeroedContent(content, self, digest) if content.complete else content


class LeavesFilesOpen(MemoryStore):
    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        os.open(os.devnull, os.O_RDONLY)
        return await super().open(digest, partial=partial)


class OpensIngests(MemoryStore):
    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        return await super().open(digest, partial=True)


class DiscardsComplete(MemoryStore):
    @override
    async def discard(self, digest: Digest) -> bool:
        is_complete = digest in self._blobs
        self.remove(digest)
        return is_complete or await super().discard(digest)


class RefusesASecondIngest(MemoryStore):
    """Claims to show what is in flight, but forgets only whole content and not an ingest that was aborted."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[Digest] = set()

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        if partial and digest not in self._blobs:
            if digest in self._seen:
                raise NotFound(f"{digest} was aborted")
            self._seen.add(digest)
        return await super().open(digest, partial=partial)


BROKEN_STORES: dict[type[MemoryStore], str] = {
    EntersOnce: "a store can be entered, exited and entered again",
    NeverReady: "a store can be entered, exited and entered again, and is ready",
    SlowReady: "ready returns true or false",
    StaysEntered: "entering and exiting can be cancelled",
    ForgetsTheFirst: "a second entry at the same time",
    LeaksKeyError: "unknown content raises NotFound",
    ForgetsMediaTypes: "describe returns digest and size, and the media type",
    ResolvesToAnother: "resolve returns the descriptor",
    Unsorted: "images returns all references",
    SyncedFirst: "watch first yields everything",
    NeverGone: "watch yields what is added and removed",
    HidesMovedTags: "watch yields what each tag means",
    ReportsUnknownContent: "everything that watch yields",
    ReportsIngestsAsComplete: "watch yields an ingest and its growth",
    HidesIngests: "watch yields an ingest and its growth",
    OneWatcherEndsAll: "each caller of watch gets its own sequence",
    OneAtATime: "every method may be called concurrently",
    SwallowsCancellation: "every method can be cancelled",
    ZeroedWhenRemoved: "content that is removed while it is open",
    LeavesFilesOpen: "closed content holds no file open",
    OpensIngests: "an ingest is not opened",
    DiscardsComplete: "discard removes only an ingest",
    RefusesASecondIngest: "shows_in_flight says whether ingests can be opened",
}


class RaisesNotFoundWhileAway(OciLayoutStore):
    """Raises NotFound while its backend is away."""

    @override
    async def resolve(self, reference: Reference) -> Descriptor:
        try:
            return await super().resolve(reference)
        except StoreUnavailable as error:
            raise NotFound(str(reference)) from error


class WaitsForItsBackend(OciLayoutStore):
    """Waits in `run` until its layout is there."""

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        async with super().run(context):
            while not self.ready():  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.01)
            yield


BROKEN_AWAY: dict[type[OciLayoutStore], str] = {
    RaisesNotFoundWhileAway: "while the backend is away StoreUnavailable is raised",
    WaitsForItsBackend: "entering does not wait for a backend",
}
"""Stores whose backend can be taken away."""
