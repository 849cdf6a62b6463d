"""Checks what `Store` promises, and what its contents promise with it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from peili.mirror.errors import Aborted, NotFound
from peili.mirror.oci.media_types import OCI_INDEX, OCI_MANIFEST, OCTET_STREAM
from peili.mirror.oci.references import Digest, Reference
from peili.mirror.plugins.interfaces import Store
from peili.mirror.testing import plugin_kit
from peili.mirror.testing.content_kit import ContentSubject, check_content, read_range
from peili.mirror.testing.contexts import entered
from peili.mirror.testing.promises import (
    IN_TIME,
    Promises,
    eventually,
    expect,
    expect_cancellable,
    expect_raises,
    fresh_bytes,
    keep,
)
from peili.mirror.testing.store_subject import (
    REFERENCE,
    StoreFactory,
    StoreSubject,
    index_of,
    manifest,
    read_back,
    told,
)
from peili.mirror.testing.watch_kit import WATCH_PROMISES
from peili.mirror.testing.watching import watching


async def check_store(factory: StoreFactory, *, within: float = IN_TIME) -> None:
    """Check every promise of `Store` and of the content it opens, each on a store of its own.

    Raises ConformanceError for the first that is broken. `within` bounds each in seconds, what the store needs to
    notice a change included.
    """
    for promise, check in PROMISES:
        async with factory() as subject:
            await keep(promise, check(subject), within)

    @asynccontextmanager
    async def whole() -> AsyncGenerator[ContentSubject]:
        async with factory() as subject:
            data = fresh_bytes(300_000)
            await subject.add(data)
            async with entered(subject.store), watching(subject.store) as watched:
                await told(watched, Digest.of(data))
                yield ContentSubject(await subject.store.open(Digest.of(data)), data)

    @asynccontextmanager
    async def arriving() -> AsyncGenerator[ContentSubject]:
        async with factory() as subject, entered(subject.store):
            await eventually(subject.store.ready)
            data = fresh_bytes(300_000)
            arrival = await subject.begin(data)
            yield ContentSubject(await subject.store.open(Digest.of(data), partial=True), data, arrival)

    await check_content(whole, within=within)
    async with factory() as subject, entered(subject.store):
        arrives = await subject.begin(fresh_bytes(1000)) is not None
    if arrives:
        await check_content(arriving, within=within)


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
        expect(digest in watched.have, "what was added before it was entered had not been told at Synced")
        await store.describe(digest)


async def _unknown(subject: StoreSubject) -> None:
    store, nowhere = subject.store, Digest.of(fresh_bytes(10))
    async with entered(store):
        await eventually(store.ready)
        await expect_raises(NotFound, store.resolve(REFERENCE))
        await expect_raises(NotFound, store.describe(nowhere))
        await expect_raises(NotFound, store.open(nowhere))
        await expect_raises(NotFound, store.open(nowhere, partial=True))
        expect(await store.discard(nowhere) is False, "discard said that there was one")


async def _describe(subject: StoreSubject) -> None:
    contents = {fresh_bytes(1000): OCTET_STREAM, b"{" + fresh_bytes(50): OCTET_STREAM, manifest(): OCI_MANIFEST}
    contents[index_of(manifest())] = OCI_INDEX
    for data in contents:
        await subject.add(data)
    async with entered(subject.store), watching(subject.store) as watched:
        for data, media_type in contents.items():
            digest = Digest.of(data)
            await told(watched, digest)
            found = await subject.store.describe(digest)
            right = (digest, len(data), media_type)
            expect((found.digest, found.size, found.media_type) == right, f"{found} was told of {right}")


async def _resolve(subject: StoreSubject) -> None:
    data = manifest()
    await subject.add(data, REFERENCE)
    async with entered(subject.store), watching(subject.store) as watched:
        await watched.until(lambda: REFERENCE in watched.have)
        found = await subject.store.resolve(REFERENCE)
        right = (Digest.of(data), len(data), OCI_MANIFEST)
        expect((found.digest, found.size, found.media_type) == right, f"{found} was told of {right}")


async def _images(subject: StoreSubject) -> None:
    for tag in ("v2", "v10", "v1"):
        await subject.add(manifest(), Reference(REFERENCE.registry, REFERENCE.repository, tag))
    async with entered(subject.store), watching(subject.store) as watched:
        await watched.until(lambda: sum(isinstance(key, Reference) for key in watched.have) == 3)
        images = await subject.store.images()
        expect([str(each).rpartition(":")[2] for each, _ in images] == ["v1", "v10", "v2"], f"there were {images}")
        for reference, descriptor in images:
            expect(await subject.store.resolve(reference) == descriptor, f"resolve gives another for {reference}")


async def _concurrent(subject: StoreSubject) -> None:
    contents = [fresh_bytes(5000) for _ in range(5)]
    for data in contents:
        await subject.add(data)
    store = subject.store
    async with entered(store), watching(store) as watched:
        for data in contents:
            await told(watched, Digest.of(data))
        await asyncio.gather(*(read_back(store, data) for data in contents * 5), store.images(), store.images())


async def _cancel(subject: StoreSubject) -> None:
    data = manifest()
    digest = Digest.of(data)
    await subject.add(data, REFERENCE)
    store = subject.store

    async def opened() -> None:
        await (await store.open(digest)).aclose()

    async with entered(store), watching(store) as watched:
        await watched.until(lambda: REFERENCE in watched.have and digest in watched.have)
        for call in (lambda: store.resolve(REFERENCE), lambda: store.describe(digest), opened, store.images):
            await expect_cancellable(_coroutine(call))
        await read_back(store, data)


def _coroutine(call: Callable[[], Awaitable[object]]) -> Callable[[], Coroutine[Any, Any, object]]:
    async def calling() -> object:
        return await call()

    return calling


async def _removed_while_open(subject: StoreSubject) -> None:
    data, store = fresh_bytes(100_000), subject.store
    digest = Digest.of(data)
    await subject.add(data)
    async with entered(store), watching(store) as watched:
        await told(watched, digest)
        async with await store.open(digest) as content:
            await subject.remove(digest)
            await watched.until(lambda: digest not in watched.have)
            with suppress(Aborted):
                expect(await read_range(content, 0, len(data)) == data, "other bytes were read")
            expect(content.available == len(data), f"available went from {len(data)} to {content.available}")


async def _not_whole(subject: StoreSubject) -> None:
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
        expect(digest not in watched.have or not watched.have[digest].complete, "it was told as whole")
        await arrival.write(data[1000:])
        await arrival.commit()
        await told(watched, digest)
        await read_back(store, data)


async def _closed(subject: StoreSubject) -> None:
    store, data = subject.store, fresh_bytes(1000)
    await subject.add(data)

    async def open_and_close() -> None:
        async with await store.open(Digest.of(data)) as content:
            await read_range(content, 0, 10)

    async with entered(store), watching(store) as watched:
        await told(watched, Digest.of(data))
        await open_and_close()
        before = _descriptors()
        for _ in range(_MANY):
            await open_and_close()
        await eventually(lambda: _descriptors() < before + _MANY // 2)


_MANY = 40
_DESCRIPTORS = "/dev/fd"


def _descriptors() -> int:
    """How many this process has open; 0 where the system does not say."""
    return len(os.listdir(_DESCRIPTORS)) if os.path.isdir(_DESCRIPTORS) else 0  # noqa: PTH208, PTH112 - quick


async def _ready(subject: StoreSubject) -> None:
    await plugin_kit.ready(subject.store, lambda: entered(subject.store))


async def _entering(subject: StoreSubject) -> None:
    await plugin_kit.entering(subject.store, lambda: entered(subject.store))


async def _sharing(subject: StoreSubject) -> None:
    await plugin_kit.sharing(subject.store, lambda: entered(subject.store))


async def _discard(subject: StoreSubject) -> None:
    store, whole, data = subject.store, fresh_bytes(100), fresh_bytes(2000)
    await subject.add(whole)
    async with entered(store), watching(store) as watched:
        await told(watched, Digest.of(whole))
        expect(await store.discard(Digest.of(whole)) is False, "it said that whole content was removed")
        await read_back(store, whole)
        arrival = await subject.begin(data)
        if arrival is None:
            return
        await arrival.write(data[:500])
        async with await store.open(Digest.of(data), partial=True) as content:
            if await store.discard(Digest.of(data)):
                await expect_raises(NotFound, store.open(Digest.of(data), partial=True))
                await expect_raises(Aborted, content.wait(500))


PROMISES: Promises = (
    ("a store can be entered, left and entered again, and is ready then", _enter),
    (plugin_kit.READY, _ready),
    (plugin_kit.ENTERING, _entering),
    (plugin_kit.SHARING, _sharing),
    ("what is not there raises NotFound", _unknown),
    (
        "describe gives digest and size, a manifest's own media type, and application/octet-stream for the rest",
        _describe,
    ),
    ("resolve gives the descriptor of what a reference stands for", _resolve),
    ("images gives all references with what they stand for, sorted", _images),
    *WATCH_PROMISES,
    ("every method may be called concurrently", _concurrent),
    ("every method can be cancelled, and called again", _cancel),
    ("content that is removed while it is open gives its own bytes or raises Aborted", _removed_while_open),
    ("content that is closed holds nothing open", _closed),
    ("content that is still arriving is not opened or described as whole", _not_whole),
    ("discard removes only what is still arriving, and says whether it did", _discard),
)
