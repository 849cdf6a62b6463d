"""Checks what `Store.watch` promises; part of the kit for stores."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from peili.mirror.errors import NotFound, StoreUnavailable
from peili.mirror.oci.references import Digest, Reference
from peili.mirror.plugins.content import Have, Synced
from peili.mirror.plugins.interfaces import Store
from peili.mirror.support.deadlines import Deadline
from peili.mirror.testing.contexts import entered
from peili.mirror.testing.promises import (
    Promises,
    eventually,
    expect,
    expect_raises,
    fresh_bytes,
)
from peili.mirror.testing.store_subject import REFERENCE, StoreSubject, manifest, read_back, told
from peili.mirror.testing.watching import watching


async def _watch_inventory(subject: StoreSubject) -> None:
    data = manifest()
    await subject.add(data, REFERENCE)
    store = subject.store
    async with entered(store), watching(store) as early:
        await early.until(lambda: early.synced)
        async with watching(store) as late:
            await late.until(lambda: late.synced)
            for name, watched in (("one from the start", early), ("one that came later", late)):
                before = watched.events[: watched.events.index(Synced())]
                keys = {event.key for event in before if isinstance(event, Have)}
                missing = {Digest.of(data), REFERENCE} - keys
                expect(not missing, f"{name} was not told of {', '.join(map(str, missing))} before Synced")
            expect(late.events.count(Synced()) == 1, "Synced was told more than once")


async def _watch_changes(subject: StoreSubject) -> None:
    data, store = fresh_bytes(1000), subject.store
    digest = Digest.of(data)
    async with entered(store), watching(store) as watched, watching(store) as other:
        await watched.until(lambda: watched.synced)
        await other.until(lambda: other.synced)
        await subject.add(data)
        await told(watched, digest)
        await told(other, digest)
        expect(watched.have[digest].size in (None, 1000), f"its size was told as {watched.have[digest].size}")
        await subject.remove(digest)
        await watched.until(lambda: digest not in watched.have)
        await other.until(lambda: digest not in other.have)
        await expect_raises(NotFound, store.describe(digest))
        await expect_raises(NotFound, store.open(digest))


async def _watch_truth(subject: StoreSubject) -> None:
    data, store = manifest(), subject.store
    await subject.add(data, REFERENCE)
    async with entered(store), watching(store) as watched:
        await watched.until(lambda: watched.synced)
        for key in watched.have:
            if isinstance(key, Reference):
                await store.resolve(key)
            else:
                await (await store.open(key)).aclose()


async def _watch_independent(subject: StoreSubject) -> None:
    store, data = subject.store, fresh_bytes(100)
    async with entered(store), watching(store) as watched:
        await watched.until(lambda: watched.synced)
        async with aclosing(store.watch()) as closed:
            await anext(closed)
        async with watching(store):
            pass
        await subject.add(data)
        await told(watched, Digest.of(data))
        await asyncio.sleep(0)
        expect(not watched.ended, f"it ended with {watched.error!r}")


async def _away(subject: StoreSubject) -> None:
    data, store = manifest(), subject.store
    await subject.add(data, REFERENCE)
    async with entered(store), watching(store) as watched:
        await told(watched, Digest.of(data))
        await watched.until(lambda: REFERENCE in watched.have and watched.synced)
        if not await subject.lose():
            return
        await eventually(lambda: not store.ready())
        before = len(watched.events)
        await expect_raises(StoreUnavailable, store.resolve(REFERENCE))
        unknown = Digest.of(fresh_bytes(100))  # what is known may be served on; of this nobody can say it is missing
        await expect_raises(StoreUnavailable, store.describe(unknown))
        await expect_raises(StoreUnavailable, store.open(unknown))
        await expect_raises(StoreUnavailable, store.images())
        await subject.restore()
        await eventually(store.ready)
        await read_back(store, data)
        added = fresh_bytes(100)
        await subject.add(added)
        await told(watched, Digest.of(added))
        keys = {event.key for event in watched.events[before:] if isinstance(event, Have)}
        expect(keys == {Digest.of(added)}, f"what had not changed was told again: {', '.join(map(str, keys))}")


async def _away_before(subject: StoreSubject) -> None:
    data, store = fresh_bytes(100), subject.store
    await subject.add(data)
    if not await subject.lose():
        return
    async with Deadline(_AT_ONCE):
        await _entered_and_left(store)
    async with entered(store), watching(store) as watched:
        await expect_raises(StoreUnavailable, store.describe(Digest.of(data)))
        expect(not store.ready(), "it is ready, with its backend away")
        expect(not watched.synced, "Synced was told, with the backend away")
        await subject.restore()
        await told(watched, Digest.of(data))
        await watched.until(lambda: watched.synced)
        await eventually(store.ready)


_AT_ONCE = 3.0  # seconds: what does not wait for a backend is done by then on the busiest machine


async def _entered_and_left(store: Store) -> None:
    async with entered(store):
        pass


WATCH_PROMISES: Promises = (
    ("watch first tells everything that is here, then Synced, to each caller", _watch_inventory),
    ("watch tells of what is added and removed, and what it tells is so", _watch_changes),
    ("what watch tells can be had", _watch_truth),
    ("each caller of watch gets a sequence of its own, without an end", _watch_independent),
    ("while the backend is away StoreUnavailable is raised, and watch goes on with what differs", _away),
    ("a backend that is not there yet is not waited for when entering, and is found once it comes", _away_before),
)
