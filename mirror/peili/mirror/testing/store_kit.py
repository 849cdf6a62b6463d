"""The conformance kit for `Store` and for the content that it opens. watch_kit.py checks `Store.watch`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from operator import attrgetter
from typing import Any

from peili.mirror.errors import Aborted, NotFound
from peili.mirror.oci.references import OCI_INDEX, OCI_MANIFEST, OCTET_STREAM, Digest, Reference
from peili.mirror.plugins.interfaces import Store
from peili.mirror.testing.conformance import (
    DEFAULT_TIMEOUT,
    Promises,
    check_promises,
    eventually,
    expect,
    expect_cancellable,
    expect_raises,
    fresh_bytes,
    plugin_promises,
)
from peili.mirror.testing.content_kit import ContentSubject, check_content, read_range
from peili.mirror.testing.contexts import entered
from peili.mirror.testing.store_subject import (
    REFERENCE,
    StoreFactory,
    StoreSubject,
    expect_content,
    fresh_manifest,
    index_of,
    until_complete,
    watching,
)
from peili.mirror.testing.watch_kit import WATCH_PROMISES


async def check_store(factory: StoreFactory, *, within: float = DEFAULT_TIMEOUT) -> None:
    """Check every promise of `Store` and of the content that it opens, each on a new store.

    Args:
        factory: Creates the store.
        within: Seconds in which each promise must be kept, by default 30. It includes the time that the store
            needs to notice a change.

    Raises:
        ConformanceError: A promise is broken; the first one that was found.
    """
    await check_promises(PROMISES, factory, within)

    @asynccontextmanager
    async def complete() -> AsyncGenerator[ContentSubject]:
        async with factory() as subject:
            data = fresh_bytes(300_000)
            await subject.add(data)
            async with entered(subject.store), watching(subject.store) as watched:
                await until_complete(watched, Digest.of(data))
                yield ContentSubject(await subject.store.open(Digest.of(data)), data)

    @asynccontextmanager
    async def ingest() -> AsyncGenerator[ContentSubject]:
        async with factory() as subject, entered(subject.store):
            await eventually(subject.store.ready)
            data = fresh_bytes(300_000)
            arrival = await subject.begin(data)
            yield ContentSubject(await subject.store.open(Digest.of(data), partial=True), data, arrival)

    await check_content(complete, within=within)
    async with factory() as subject, entered(subject.store):
        shows_ingests = await subject.begin(fresh_bytes(1000)) is not None
    if shows_ingests:
        await check_content(ingest, within=within)


async def _enter(subject: StoreSubject) -> None:
    first, second = fresh_bytes(100), fresh_bytes(100)
    await subject.add(first)
    await _found_when_entered(subject.store, Digest.of(first))
    await subject.add(second)
    await _found_when_entered(subject.store, Digest.of(second))


async def _found_when_entered(store: Store, digest: Digest) -> None:
    async with entered(store), watching(store) as watched:
        await eventually(store.ready)
        await watched.until(lambda: watched.synced)
        expect(digest in watched.have, "content that was added before the entry was not reported before Synced")
        await store.describe(digest)


async def _unknown(subject: StoreSubject) -> None:
    store, unknown = subject.store, Digest.of(fresh_bytes(10))
    async with entered(store):
        await eventually(store.ready)
        await expect_raises(NotFound, store.resolve(REFERENCE))
        await expect_raises(NotFound, store.describe(unknown))
        await expect_raises(NotFound, store.open(unknown))
        await expect_raises(NotFound, store.open(unknown, partial=True))
        expect(await store.discard(unknown) is False, "discard returned True")


async def _describe(subject: StoreSubject) -> None:
    contents = {fresh_bytes(1000): OCTET_STREAM, b"{" + fresh_bytes(50): OCTET_STREAM, fresh_manifest(): OCI_MANIFEST}
    contents[index_of(fresh_manifest())] = OCI_INDEX
    for data in contents:
        await subject.add(data)
    async with entered(subject.store), watching(subject.store) as watched:
        for data, media_type in contents.items():
            digest = Digest.of(data)
            await until_complete(watched, digest)
            found = await subject.store.describe(digest)
            right = (digest, len(data), media_type)
            expect((found.digest, found.size, found.media_type) == right, f"{found} was returned instead of {right}")


async def _resolve(subject: StoreSubject) -> None:
    data = fresh_manifest()
    await subject.add(data, REFERENCE)
    async with entered(subject.store), watching(subject.store) as watched:
        await watched.until(lambda: REFERENCE in watched.have)
        found = await subject.store.resolve(REFERENCE)
        right = (Digest.of(data), len(data), OCI_MANIFEST)
        expect((found.digest, found.size, found.media_type) == right, f"{found} was returned instead of {right}")


async def _images(subject: StoreSubject) -> None:
    for tag in ("v2", "v10", "v1"):
        await subject.add(fresh_manifest(), Reference(REFERENCE.registry, REFERENCE.repository, tag))
    async with entered(subject.store), watching(subject.store) as watched:
        await watched.until(lambda: sum(isinstance(key, Reference) for key in watched.have) == 3)
        images = await subject.store.images()
        expect([str(each).rpartition(":")[2] for each, _ in images] == ["v1", "v10", "v2"], f"the images were {images}")
        known = set(await subject.store.repositories())
        expect(
            known >= {(each.registry, each.repository, target.digest) for each, target in images},
            f"the repositories were {known}",
        )
        for reference, descriptor in images:
            expect(
                await subject.store.resolve(reference) == descriptor,
                f"resolve differs for {reference}",
            )


async def _concurrent(subject: StoreSubject) -> None:
    contents = [fresh_bytes(5000) for _ in range(5)]
    for data in contents:
        await subject.add(data)
    store = subject.store
    async with entered(store), watching(store) as watched:
        for data in contents:
            await until_complete(watched, Digest.of(data))
        await asyncio.gather(*(expect_content(store, data) for data in contents * 5), store.images(), store.images())


async def _cancel(subject: StoreSubject) -> None:
    data = fresh_manifest()
    digest = Digest.of(data)
    await subject.add(data, REFERENCE)
    store = subject.store

    async def opened() -> None:
        await (await store.open(digest)).aclose()

    async with entered(store), watching(store) as watched:
        await watched.until(lambda: REFERENCE in watched.have and digest in watched.have)
        for call in (lambda: store.resolve(REFERENCE), lambda: store.describe(digest), opened, store.images):
            await expect_cancellable(_coroutine(call))
        await expect_content(store, data)


def _coroutine(call: Callable[[], Awaitable[object]]) -> Callable[[], Coroutine[Any, Any, object]]:
    async def call_it() -> object:
        return await call()

    return call_it


async def _removed_while_open(subject: StoreSubject) -> None:
    data, store = fresh_bytes(100_000), subject.store
    digest = Digest.of(data)
    await subject.add(data)
    async with entered(store), watching(store) as watched:
        await until_complete(watched, digest)
        async with await store.open(digest) as content:
            await subject.remove(digest)
            await watched.until(lambda: digest not in watched.have)
            with suppress(Aborted):
                expect(await read_range(content, 0, len(data)) == data, "other bytes were read")
            expect(content.available == len(data), f"available went from {len(data)} to {content.available}")


async def _not_complete(subject: StoreSubject) -> None:
    store, data = subject.store, fresh_bytes(2000)
    digest = Digest.of(data)
    async with entered(store), watching(store) as watched:
        await watched.until(lambda: watched.synced)
        arrival = await subject.begin(data)
        if arrival is None:
            return
        await arrival.write(data[:1000])
        await expect_raises(NotFound, store.open(digest))
        await expect_raises(NotFound, store.describe(digest))
        expect(digest not in watched.have or not watched.have[digest].complete, "it was reported as complete")
        await arrival.write(data[1000:])
        await arrival.commit()
        await until_complete(watched, digest)
        await expect_content(store, data)


async def _closed(subject: StoreSubject) -> None:
    store, data = subject.store, fresh_bytes(1000)
    await subject.add(data)

    async def open_and_close() -> None:
        async with await store.open(Digest.of(data)) as content:
            await read_range(content, 0, 10)

    async with entered(store), watching(store) as watched:
        await until_complete(watched, Digest.of(data))
        await open_and_close()
        before = _open_descriptors()
        for _ in range(_MANY):
            await open_and_close()
        await eventually(lambda: _open_descriptors() < before + _MANY // 2)


_MANY = 40  # opened and closed
_DESCRIPTORS = "/dev/fd"


def _open_descriptors() -> int:
    """Return how many descriptors this process has open; 0 if the system does not tell."""
    return len(os.listdir(_DESCRIPTORS)) if os.path.isdir(_DESCRIPTORS) else 0  # noqa: PTH208, PTH112 - quick


async def _discard(subject: StoreSubject) -> None:
    store, whole, data = subject.store, fresh_bytes(100), fresh_bytes(2000)
    await subject.add(whole)
    async with entered(store), watching(store) as watched:
        await until_complete(watched, Digest.of(whole))
        expect(await store.discard(Digest.of(whole)) is False, "it returned True for complete content")
        await expect_content(store, whole)
        arrival = await subject.begin(data)
        if arrival is None:
            return
        await arrival.write(data[:500])
        async with await store.open(Digest.of(data), partial=True) as content:
            if await store.discard(Digest.of(data)):
                await expect_raises(NotFound, store.open(Digest.of(data), partial=True))
                await expect_raises(Aborted, content.wait(500))


async def _shows_in_flight(subject: StoreSubject) -> None:
    store, data = subject.store, fresh_bytes(2000)
    digest = Digest.of(data)
    async with entered(store), watching(store) as watched:
        await watched.until(lambda: watched.synced)
        shows = store.shows_in_flight()
        arrival = await subject.begin(data)
        if arrival is None:
            expect(not shows, "shows_in_flight is true, but the subject has no ingest to show")
            return
        expect(shows or not store.shows_in_flight(), "shows_in_flight became true only with an ingest")
        await arrival.write(data[:500])
        if shows:
            async with await store.open(digest, partial=True) as content:
                expect(await content.wait(0) == 500, f"{content.available} of 500 bytes are available")
        await arrival.abort()
        await watched.until(lambda: digest not in watched.have)
        await expect_raises(NotFound, store.open(digest, partial=True))
        again = await subject.begin(data)
        if again is None:
            return
        await again.write(data)
        if shows:
            async with await store.open(digest, partial=True) as content:
                expect(await content.wait(0) == 2000, f"{content.available} of 2000 bytes are available")
        await again.commit()
        await until_complete(watched, digest)
        await expect_content(store, data)


PROMISES: Promises = (
    ("a store can be entered, exited and entered again, and is ready then", _enter),
    *plugin_promises(attrgetter("store"), lambda subject: entered(subject.store)),
    ("unknown content raises NotFound", _unknown),
    (
        "describe returns digest and size, and the media type: a manifest's own, or else application/octet-stream",
        _describe,
    ),
    ("resolve returns the descriptor that a reference points to", _resolve),
    ("images returns all references with their descriptors, sorted by reference", _images),
    *WATCH_PROMISES,
    ("every method may be called concurrently", _concurrent),
    ("every method can be cancelled, and called again", _cancel),
    ("content that is removed while it is open returns its own bytes or raises Aborted", _removed_while_open),
    ("closed content holds no file open", _closed),
    ("an ingest is not opened or described as complete content", _not_complete),
    ("discard removes only an ingest, and returns whether it did", _discard),
    ("shows_in_flight says whether ingests can be opened; one that was aborted may begin again", _shows_in_flight),
)
