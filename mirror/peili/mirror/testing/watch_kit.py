"""The part of the conformance kit for stores that checks `Store.watch`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from peili.mirror.errors import NotFound, StoreUnavailable
from peili.mirror.oci.references import Digest, Reference
from peili.mirror.plugins.content import Have, Synced
from peili.mirror.support.deadlines import Deadline
from peili.mirror.testing.conformance import (
    Promises,
    eventually,
    expect,
    expect_raises,
    fresh_bytes,
)
from peili.mirror.testing.contexts import entered
from peili.mirror.testing.store_subject import (
    REFERENCE,
    StoreSubject,
    expect_content,
    fresh_manifest,
    until_complete,
    watching,
)


async def _watch_inventory(subject: StoreSubject) -> None:
    data = fresh_manifest()
    await subject.add(data, REFERENCE)
    store = subject.store
    async with entered(store), watching(store) as early:
        await early.until(lambda: early.synced)
        async with watching(store) as late:
            await late.until(lambda: late.synced)
            for name, watched in (("the first watcher", early), ("a later watcher", late)):
                before = watched.events[: watched.events.index(Synced())]
                keys = {event.key for event in before if isinstance(event, Have)}
                missing = {Digest.of(data), REFERENCE} - keys
                expect(not missing, f"{name} did not receive {', '.join(map(str, missing))} before Synced")
            expect(late.events.count(Synced()) == 1, "Synced was received more than once")


async def _watch_changes(subject: StoreSubject) -> None:
    data, store = fresh_bytes(1000), subject.store
    digest = Digest.of(data)
    async with entered(store), watching(store) as watched, watching(store) as other:
        await watched.until(lambda: watched.synced)
        await other.until(lambda: other.synced)
        await subject.add(data)
        await until_complete(watched, digest)
        await until_complete(other, digest)
        expect(watched.have[digest].size in (None, 1000), f"its reported size is {watched.have[digest].size}")
        await subject.remove(digest)
        await watched.until(lambda: digest not in watched.have)
        await other.until(lambda: digest not in other.have)
        await expect_raises(NotFound, store.describe(digest))
        await expect_raises(NotFound, store.open(digest))


async def _watch_moved_tag(subject: StoreSubject) -> None:
    before, after, store = fresh_manifest(), fresh_manifest(), subject.store
    await subject.add(before, REFERENCE)
    async with entered(store), watching(store) as watched:
        await watched.until(lambda: watched.synced)
        known = watched.have[REFERENCE]
        expect(known.target == Digest.of(before), f"the tag was reported as {known}")
        await subject.add(after, REFERENCE)
        await watched.until(lambda: REFERENCE in watched.have and watched.have[REFERENCE].target == Digest.of(after))


async def _watch_available(subject: StoreSubject) -> None:
    data, store = fresh_manifest(), subject.store
    await subject.add(data, REFERENCE)
    async with entered(store), watching(store) as watched:
        await watched.until(lambda: watched.synced)
        for key in watched.have:
            if isinstance(key, Reference):
                await store.resolve(key)
            else:
                await (await store.open(key, partial=not watched.have[key].complete)).aclose()


async def _watch_independent(subject: StoreSubject) -> None:
    store, data = subject.store, fresh_bytes(100)
    async with entered(store), watching(store) as watched:
        await watched.until(lambda: watched.synced)
        async with aclosing(store.watch()) as closed:
            await anext(closed)
        async with watching(store):
            pass
        await subject.add(data)
        await until_complete(watched, Digest.of(data))
        await asyncio.sleep(0)
        expect(not watched.ended, f"the watch ended with {watched.error!r}")


async def _watch_ingest(subject: StoreSubject) -> None:
    store, data, aborted = subject.store, fresh_bytes(3000), fresh_bytes(3000)
    digest = Digest.of(data)
    async with entered(store), watching(store) as watched:
        await watched.until(lambda: watched.synced)
        arrival = await subject.begin(data)
        if arrival is None:
            return
        await arrival.write(data[:1000])
        await watched.until(lambda: digest in watched.have and watched.have[digest].available == 1000)
        have = watched.have[digest]
        expect(not have.complete and have.size in (None, 3000), f"it was reported as {have}")
        other = fresh_bytes(100)
        await subject.add(other)
        await until_complete(watched, Digest.of(other))
        expect(watched.have.get(digest) == have, "it was no longer reported after other content was added")
        await arrival.write(data[1000:])
        await watched.until(lambda: watched.have[digest].available == 3000)
        expect(not watched.have[digest].complete, "it was reported as complete before it was")
        await arrival.commit()
        await until_complete(watched, digest)
        await expect_content(store, data)
        if (arrival := await subject.begin(aborted)) is not None:
            await watched.until(lambda: Digest.of(aborted) in watched.have)
            await arrival.abort()
        await watched.until(lambda: Digest.of(aborted) not in watched.have)


async def _away(subject: StoreSubject) -> None:
    data, store = fresh_manifest(), subject.store
    await subject.add(data, REFERENCE)
    async with entered(store), watching(store) as watched:
        await until_complete(watched, Digest.of(data))
        await watched.until(lambda: REFERENCE in watched.have and watched.synced)
        if not await subject.lose():
            return
        await eventually(lambda: not store.ready())
        before = len(watched.events)
        await expect_raises(StoreUnavailable, store.resolve(REFERENCE))
        unknown = Digest.of(fresh_bytes(100))  # known content may still be served; whether this is missing is unknown
        await expect_raises(StoreUnavailable, store.describe(unknown))
        await expect_raises(StoreUnavailable, store.open(unknown))
        await expect_raises(StoreUnavailable, store.images())
        await subject.restore()
        await eventually(store.ready)
        await expect_content(store, data)
        added = fresh_bytes(100)
        await subject.add(added)
        await until_complete(watched, Digest.of(added))
        keys = {event.key for event in watched.events[before:] if isinstance(event, Have)}
        expect(keys == {Digest.of(added)}, f"unchanged keys were reported again: {', '.join(map(str, keys))}")


async def _away_before(subject: StoreSubject) -> None:
    data, store = fresh_bytes(100), subject.store
    await subject.add(data)
    if not await subject.lose():
        return
    async with Deadline(_ENTRY_TIMEOUT), entered(store):
        pass
    async with entered(store), watching(store) as watched:
        await expect_raises(StoreUnavailable, store.describe(Digest.of(data)))
        expect(not store.ready(), "it is ready while its backend is away")
        expect(not watched.synced, "Synced was received while the backend is away")
        await subject.restore()
        await until_complete(watched, Digest.of(data))
        await watched.until(lambda: watched.synced)
        await eventually(store.ready)


_ENTRY_TIMEOUT = 3.0  # seconds; even on a busy machine, an entry that waits for no backend takes less


WATCH_PROMISES: Promises = (
    ("watch first yields everything that the store has, then Synced, to each caller", _watch_inventory),
    ("watch yields what is added and removed, and the store agrees", _watch_changes),
    ("watch yields what each tag means, also when it begins to mean something else", _watch_moved_tag),
    ("everything that watch yields can be opened or resolved", _watch_available),
    ("watch yields an ingest and its growth as not complete, then as complete or gone", _watch_ingest),
    ("each caller of watch gets its own sequence, without an end", _watch_independent),
    ("while the backend is away StoreUnavailable is raised; later, watch yields only differences", _away),
    ("entering does not wait for a backend that is not there yet, and the store finds it later", _away_before),
)
