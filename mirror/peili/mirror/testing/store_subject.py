"""What the author of a store provides to the conformance kit, and how a test follows `Store.watch`."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

from peili.mirror.oci.references import OCI_MANIFEST, OCTET_STREAM, Digest, Key, Reference
from peili.mirror.plugins.checks import check, plain
from peili.mirror.plugins.content import Gone, Have, StoreEvent, Synced
from peili.mirror.plugins.interfaces import Store
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.tasks import is_own_failure
from peili.mirror.testing.conformance import expect, fresh_bytes
from peili.mirror.testing.content_kit import Arrival, read_range


class StoreSubject(ABC):
    """A store to be checked, and ways to change the backend that it shows.

    The kit makes changes while the store is entered, and while it is not.

    Attributes:
        store: The store, not entered. The kit enters it more than once.
    """

    store: Store

    @abstractmethod
    async def add(self, data: bytes, reference: Reference | None = None) -> None:
        """Add complete content to the backend.

        Args:
            data: The content.
            reference: A tag for the content, which is then a manifest.
        """

    @abstractmethod
    async def remove(self, digest: Digest) -> None:
        """Remove content from the backend, and the tags that point to it."""

    async def begin(self, data: bytes) -> Arrival | None:
        """Start an ingest of `data`, which is empty so far. Returns None if the store can't show ingests."""
        return None

    async def lose(self) -> bool:
        """Take the whole backend away. Returns False if this can't happen."""
        return False

    async def restore(self) -> None:
        """Bring the backend back that `lose` took away, unchanged."""
        raise NotImplementedError


StoreFactory = Callable[[], AbstractAsyncContextManager[StoreSubject]]
"""Returns a context manager that creates a store with its own backend, and cleans up on exit."""

REFERENCE = Reference("registry.example", "conformance/demo", "v1")


class Watched:
    """What a watcher of a store knows.

    Attributes:
        events: All events, in the order received.
        have: The keys that the store has, according to the events.
        synced: Whether `Synced` was received.
        ended: Whether the watch has ended, which it must not.
        error: The exception that ended the watch, if any.
    """

    def __init__(self) -> None:
        self.events: list[StoreEvent] = []
        self.have: dict[Key, Have] = {}
        self.synced = False
        self.ended = False
        self.error: BaseException | None = None
        self._changed = asyncio.Event()

    def take(self, event: StoreEvent) -> None:
        """Apply one event. Raises ValueError if it is of an unknown class."""
        self.events.append(event)
        match event:
            case Have(key=key):
                self.have[key] = event
            case Gone(key=key):
                self.have.pop(key, None)
            case Synced():
                self.synced = True
            case _:
                raise ValueError(f"no such event: {event!r}")

    async def follow(self, store: Store) -> None:
        """Apply every event of a watch of `store`, until it ends or this is cancelled."""
        try:
            stream = plain(store.watch(), "watch", "an async generator (async def, with yield)")
            check(stream, AsyncGenerator, "watch returned")
            async with aclosing(stream):
                async for events in stream:
                    for event in events:
                        self.take(event)
                    self._changed.set()
        except BaseException as error:
            if not is_own_failure(error):
                raise
            self.error = error  # `until` raises it
        finally:
            self.ended = True
            self._changed.set()

    async def until(self, condition: Callable[[], bool], *, within: float = 10.0) -> None:
        """Wait until `condition` is true. It is tested after each batch of events.

        Args:
            condition: Called without arguments. It reads this object.
            within: Seconds after which to give up.

        Raises:
            TimeoutError: The condition is still false after `within` seconds.
            RuntimeError: The watch has ended before.
        """
        async with Deadline(within):
            while not condition():
                if self.ended:
                    reason = "without an error" if self.error is None else f"with {self.error!r}"
                    raise RuntimeError(f"the watch ended {reason}") from self.error
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def watching(store: Store) -> AsyncGenerator[Watched]:
    """Watch `store` in a background task. The store must be entered."""
    watched = Watched()
    following = asyncio.create_task(watched.follow(store))
    try:
        yield watched
    finally:
        following.cancel()
        await asyncio.wait([following])


def fresh_manifest() -> bytes:
    """Return a manifest that no backend has yet. Its config exists nowhere."""
    entry = {"mediaType": OCTET_STREAM, "digest": Digest.of(fresh_bytes(10)), "size": 10}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": entry, "layers": []}).encode()


def index_of(manifest: bytes) -> bytes:
    """Return an index of one manifest. It does not state its own media type, which an index need not."""
    entry = {"mediaType": OCI_MANIFEST, "digest": Digest.of(manifest), "size": len(manifest)}
    return json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()


async def until_complete(watched: Watched, digest: Digest) -> None:
    """Wait until `watched` has `digest` as complete content."""
    await watched.until(lambda: digest in watched.have and watched.have[digest].complete)


async def expect_content(store: Store, data: bytes) -> None:
    """Raise BrokenPromise unless `store` has `data` as complete content."""
    digest = Digest.of(data)
    expect((await store.describe(digest)).size == len(data), "describe returned another size")
    async with await store.open(digest) as content:
        expect(await read_range(content, 0, len(data)) == data, "other bytes were read")
