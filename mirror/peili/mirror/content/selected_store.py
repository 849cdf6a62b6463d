"""A store without the content of images that the mirror is not for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing

from typing_extensions import override

from peili.mirror.content.wrapped_store import WrappedStore
from peili.mirror.errors import Aborted, NotFound, StoreUnavailable, Unavailable
from peili.mirror.oci.children import Children, all_children_of
from peili.mirror.oci.references import MAX_MANIFEST, Descriptor, Digest, Reference
from peili.mirror.oci.selection import Selection
from peili.mirror.plugins.content import Content, Gone, Have, StoreEvent, read_whole
from peili.mirror.plugins.interfaces import Store
from peili.mirror.support.expiring import Expiring
from peili.mirror.support.tasks import is_own_failure

_TTL = 1.0
"""Seconds for which the list of images is used."""
_RETRY = 0.5
"""Seconds until a store that did not answer is asked again for its images."""
_MAX_REQUESTED = 65_536
_REQUESTED_TTL = 6 * 3600.0
"""Seconds for which a request says that something belongs to an excluded image. No pull takes longer."""
_MOST_UNREAD = 16
"""Manifests that can't be read. If there are more, the store does not answer."""


class SelectedStore(WrappedStore):
    """What a store has, without excluded content.

    A digest is excluded if this host knows it only through images that `selection` excludes: it belongs to one of them,
    or the runtime has requested it for one of them, and it belongs to no other image of this host. While the runtime
    pulls an excluded image, its requests are all that is known, because the store lists an image when it is whole. So
    a request counts for six hours: anybody may have written it.

    Args:
        store: The store.
        selection: Which images the mirror is for.
        log: Receives which manifests can't be read. What such a manifest refers to does not belong to its image.
        clock: Seconds that never go back, for the requests.
    """

    def __init__(
        self,
        store: Store,
        selection: Selection,
        log: logging.Logger | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(store)
        self._selection = selection
        self._log = log or logging.getLogger("peili")
        self._allowed = frozenset[Digest]()  # what belongs to images that are not excluded
        self._excluded = frozenset[Digest]()  # what belongs to images that are excluded
        self._requested: Expiring[Digest, None] = Expiring(_MAX_REQUESTED, clock)  # for excluded images
        self._children: dict[Digest, Children] = {}  # of the manifests of all images
        self._expires = 0.0
        self._changes = 0  # how often something has changed, as far as this host knows
        self._read_after = -1  # how many of them were over when the list was read
        self._reading: asyncio.Event | None = None

    def note_excluded_request(self, digest: Digest) -> None:
        """Note that this host's runtime has requested `digest` for an image that is excluded."""
        is_new = digest not in self._requested
        if self._requested.is_empty() or (is_new and digest in self._allowed):
            self._changes += 1  # what belongs to other images was of no interest so far, or an index allowed it
        self._requested.set(digest, None, _REQUESTED_TTL)

    async def is_excluded(self, digest: Digest) -> bool:
        """Return whether `digest` is excluded.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        await self._update()
        return self._is_excluded(digest)

    def _is_excluded(self, digest: Digest) -> bool:
        return digest not in self._allowed and (digest in self._excluded or digest in self._requested)

    async def _update(self) -> None:
        """Read the list of images again if it is too old. Only one task reads it, and the others wait.

        A list counts only for changes that were over before it was read.
        """
        while self._read_after != self._changes or time.monotonic() >= self._expires:
            if self._reading is not None:
                await self._reading.wait()
                continue
            self._reading = done = asyncio.Event()
            try:
                await self._read_images()
            finally:  # also if this is cancelled: another task then reads
                self._reading = None
                done.set()

    async def _read_images(self) -> None:
        changes, unread = self._changes, set[Digest]()
        images = await self._store.images()
        allowed = {each.digest for reference, each in images if self._allows(reference)}
        excluded = {each.digest for reference, each in images if not self._allows(reference)}
        named = await self._store.repositories()  # also images without a tag
        excluded |= {digest for registry, name, digest in named if not self._selection.allows(registry, name)}
        known: dict[Digest, Children] = {}
        if excluded or not self._requested.is_empty():
            excluded = await self._closure(excluded, known, unread, lambda _: True)
            allowed = await self._closure(
                allowed, known, unread, lambda each: each not in excluded and self._may_allow(each)
            )
        self._allowed, self._excluded, self._children = frozenset(allowed), frozenset(excluded), known
        self._expires, self._read_after = time.monotonic() + _TTL, changes

    def _allows(self, reference: Reference) -> bool:
        return self._selection.allows(reference.registry, reference.repository, reference.tag)

    def _may_allow(self, manifest: Digest) -> bool:
        """Return whether an index allows a manifest: not if it arrives now, for an excluded image."""
        return manifest not in self._requested or (manifest in self._allowed and manifest in self._children)

    async def _closure(
        self, roots: set[Digest], known: dict[Digest, Children], unread: set[Digest], counts: Callable[[Digest], bool]
    ) -> set[Digest]:
        """Return `roots` and everything that they refer to. Add the children of each manifest to `known`.

        A manifest that can't be read is added to `unread`. `counts` returns whether a manifest in an index counts, with
        what it refers to. Anybody can write an index that names a manifest of others, for another platform, so that no
        runtime fetches it for this index.
        """
        found, waiting = set(roots), list(roots)
        while waiting:
            digest = waiting.pop()
            children = known.get(digest) or self._children.get(digest) or await self._read_children(digest, unread)
            if children is not None:
                known[digest] = children
                new = {each for each in children.manifests if each not in found and counts(each)}
                waiting += new
                found |= new.union(children.blobs)
        return found

    async def _read_children(self, digest: Digest, unread: set[Digest]) -> Children | None:
        """Return what a manifest refers to; None if it is not there, is no manifest, or can't be read."""
        try:
            async with await self._store.open(digest) as content:
                return all_children_of(await read_whole(content, MAX_MANIFEST))
        except (NotFound, Aborted, ValueError):
            return None
        except BaseException as error:
            if not is_own_failure(error):
                raise
            self._log.debug("%s can't be read, so what it refers to is not known: %r", digest, error)
            unread.add(digest)
            if len(unread) > _MOST_UNREAD:
                raise StoreUnavailable(f"more than {_MOST_UNREAD} manifests can't be read") from error
        await self._store.images()  # raises StoreUnavailable if it is the store that does not answer
        return None

    async def _require(self, digest: Digest) -> None:
        if await self.is_excluded(digest):
            raise NotFound(f"this mirror is not for {digest}")

    @override
    async def resolve(self, reference: Reference) -> Descriptor:
        if not self._allows(reference):
            raise NotFound(f"this mirror is not for {reference}")
        return await super().resolve(reference)

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        await self._require(digest)
        return await super().describe(digest)

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        await self._require(digest)
        return await super().open(digest, partial=partial)

    @override
    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        return [each for each in await super().images() if self._allows(each[0])]

    @override
    async def repositories(self) -> Collection[tuple[str, str, Digest]]:
        return [each for each in await super().repositories() if self._selection.allows(each[0], each[1])]

    @override
    async def was_fetched(self, digest: Digest) -> bool | None:
        await self._require(digest)
        return await super().was_fetched(digest)

    @override
    async def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        hidden: dict[Digest, Have] = {}
        shown: dict[Digest, Have] = {}
        async with aclosing(super().watch()) as batches:
            async for batch in batches:
                if any(isinstance(event, (Have, Gone)) and isinstance(event.key, Reference) for event in batch):
                    self._changes += 1  # an image is new or gone
                await self._update_patiently()
                events = [change for event in batch for change in self._select(event, hidden, shown)]
                again = [each for digest, each in hidden.items() if not self._is_excluded(digest)]
                again += [each for digest, each in shown.items() if self._is_excluded(digest)]
                events += [change for event in again for change in self._select(event, hidden, shown)]
                if events:
                    yield events

    async def _update_patiently(self) -> None:
        while True:
            try:
                await self._update()
            except Unavailable:
                await asyncio.sleep(_RETRY)
            else:
                return

    def _select(self, event: StoreEvent, hidden: dict[Digest, Have], shown: dict[Digest, Have]) -> list[StoreEvent]:
        """Return the events that take the place of `event`, and note which keys the watcher knows."""
        if not isinstance(event, (Have, Gone)):
            return [event]
        key = event.key
        if isinstance(key, Reference):
            return [event] if self._allows(key) else []
        was_shown = shown.pop(key, None) is not None
        hidden.pop(key, None)
        if isinstance(event, Gone):
            return [event] if was_shown else []
        if self._is_excluded(key):
            hidden[key] = event
            return [Gone(key)] if was_shown else []
        shown[key] = event
        return [event]
