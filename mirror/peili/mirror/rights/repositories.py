"""Finds out to whom content of this host belongs: to everybody, or only to those who may pull covered images.

Content is open if an image of this host that is not covered has it, or if a registry said lately that a repository that
is not covered has it. A manifest of covered images is not open because an index names it: anybody can write an index.
arrivals.py decides about content of no image. All other content is closed, and so is what is not known.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from contextlib import aclosing
from functools import partial

from peili.mirror.errors import PeiliError
from peili.mirror.oci.children import Children
from peili.mirror.oci.references import Digest, Key, Reference
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.content import Gone, Have, StoreEvent, Synced
from peili.mirror.plugins.interfaces import Context
from peili.mirror.rights.arrivals import Arrivals
from peili.mirror.rights.coverage import Coverage
from peili.mirror.rights.manifests import ManifestChildren
from peili.mirror.support.expiring import Expiring
from peili.mirror.support.tasks import Backoff, keep_running

_PAUSE = 1.0
"""Seconds between two readings of the list of images."""
_NOTED_WITHIN = 0.5
"""Seconds in which a store knows that content was fetched from a registry."""
_TTL = 10.0
"""Seconds for which the list counts that nothing has changed since. Not each store says when an image is new."""
_MOST = 65_536
"""How many digests are remembered of which a registry has said something."""
_MOST_UNREAD = 16
"""Manifests that can't be read. If there are more, the store does not answer."""


class Repositories:
    """Which repositories have a digest, as far as this host knows. Used on one event loop.

    Args:
        context: The context of the mirror.
        coverage: Which repositories are covered.
        manifests: What manifests refer to.
        ttl: Seconds for which it is remembered what a registry said.
        clock: Seconds that never go back, for the list of images.

    Attributes:
        arrivals: What the runtime requests, and what arrives.
    """

    def __init__(
        self,
        context: Context,
        coverage: Coverage,
        manifests: ManifestChildren,
        ttl: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self.arrivals = Arrivals()
        self._context = context
        self._coverage = coverage
        self._manifests = manifests
        self._listed: dict[Digest, bool] = {}  # what belongs to images, and whether to one that is not covered
        self._ttl = ttl
        self._confirmed: Expiring[Digest, None] = Expiring(_MOST)  # a registry said that it is open
        self._is_outdated = True
        self._has_other_images = False  # than when the list was read: an image may be gone
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    def confirm(self, digest: Digest) -> None:
        """Note that, as a registry says, a repository that is not covered has `digest`."""
        self._confirmed.set(digest, None, self._ttl)

    def is_certainly_open(self, digest: Digest) -> bool:
        """Return whether `digest` is known to be open. Costs nothing; False may only mean that nobody has looked."""
        is_too_old = self._has_other_images and self._clock() >= self._read_at + _PAUSE
        return digest in self._confirmed or (self._listed.get(digest, False) and not is_too_old)

    async def is_open(self, key: Key) -> bool:
        """Return whether everybody may know that this host has `key`, and get its content.

        The list of images is read again if it may have changed or is ten seconds old, but at most once a second.
        """
        if isinstance(key, Reference):
            return not self._coverage.covers(key.registry, key.repository)
        if not self.is_certainly_open(key):
            await self._update()
        if self.is_certainly_open(key):
            return True
        return key not in self._listed and self.arrivals.is_open(key) and await self._was_fetched(key)

    async def _was_fetched(self, digest: Digest) -> bool:
        """Return whether content has arrived for those who requested it, as far as the store knows.

        What was imported is here for nobody, until an image has it. Some stores know it a moment later.
        """
        was_fetched = partial(self._context.store.was_fetched, digest)
        while (seconds := self.arrivals.seconds_without_reason(digest)) is not None:
            try:
                is_fetched = await call(was_fetched, self._context, "the store", about=digest, allowed=(PeiliError,))
            except PeiliError:
                return False
            if is_fetched is not False:
                self.arrivals.note_fetched(digest)
            elif seconds > _NOTED_WITHIN:
                return False
            else:
                await asyncio.sleep(_NOTED_WITHIN / 20)
        return self.arrivals.is_open(digest)

    async def run(self) -> None:
        """Follow the store until cancelled: which images change, and what arrives without a request."""
        limits, log = self._context.limits, self._context.log

        def failed(error: BaseException) -> None:
            log.warning("to whom content belongs is not followed: %s", str(error) or repr(error))

        await keep_running(self._follow, Backoff(limits.backoff_min, limits.backoff_max), failed)

    async def _follow(self, backoff: Backoff) -> None:
        try:
            async with aclosing(self._context.store.watch()) as batches:
                async for batch in batches:
                    for event in batch:
                        self._note(event)
                    backoff.reset()
        finally:
            self._is_outdated = self._has_other_images = True
            self.arrivals.follow(is_followed=False)

    def _note(self, event: StoreEvent) -> None:
        match event:
            case Have(key=key, complete=False, available=available) if isinstance(key, Digest):
                if available:
                    self.arrivals.note_arrival(key, is_whole=False)
            case Have(key=key) if isinstance(key, Digest):
                self._is_outdated = True
                self.arrivals.note_arrival(key, is_whole=True)
                self._manifests.note_arrival(key)
            case Gone(key=key) if isinstance(key, Digest):
                self.arrivals.forget({key})
            case Have() | Gone():
                self._is_outdated = self._has_other_images = True
            case Synced():
                self.arrivals.follow(is_followed=True)
            case _:
                pass

    async def _update(self) -> None:
        """Read the list of images, if it may have changed. Only one task reads it, and the others wait."""
        async with self._reading:
            if self._clock() < self._read_at + (_PAUSE if self._is_outdated else _TTL):
                return
            self._is_outdated = self._has_other_images = is_read = False
            try:
                self._listed = await self._read_images()
                is_read = True
            except PeiliError as error:
                self._context.log.debug("to whom content belongs is not known: %s", error)
            finally:  # also if this is cancelled, because the requester is gone: another task then reads
                self._is_outdated |= not is_read
                self._has_other_images |= not is_read
            self.arrivals.forget(self._listed.keys())
            self._read_at = self._clock()

    async def _read_images(self) -> dict[Digest, bool]:
        """Return what belongs to images, and whether it is open. Raises PeiliError."""
        images = await self._images()
        covered, uncovered = set[Digest](), set[Digest]()
        for registry, repository, digest in images:
            (covered if self._coverage.covers(registry, repository) else uncovered).add(digest)
        unread = set[Digest]()
        closed, _ = await self._closure(covered, unread, lambda _: True)
        # Any index may name what covered images have, so it must be known what that is.
        may_open = self._is_listed_open if unread else self._may_open
        named, absent = await self._closure(uncovered, unread, lambda each: each not in closed and may_open(each))
        self._is_outdated |= bool(unread)
        return dict.fromkeys(closed, False) | dict.fromkeys(named - absent, True)

    async def _closure(
        self, roots: Collection[Digest], unread: set[Digest], counts: Callable[[Digest], bool]
    ) -> tuple[set[Digest], set[Digest]]:
        """Return what images have, and the manifests of it that are not here, or can't be read.

        Args:
            roots: The images.
            unread: Receives the manifests that can't be read.
            counts: Returns whether a manifest in an index counts, with what it refers to. Anybody can write an index
                that names a manifest of others, for another platform, so that no runtime fetches it for this index.

        Raises:
            PeiliError: The store does not answer.
        """
        found, absent, stack = set(roots), set[Digest](), list(roots)
        while stack:
            if (children := await self._children(digest := stack.pop(), unread)) is None:
                absent.add(digest)
                continue
            new = {each for each in children.manifests if each not in found and counts(each)}
            stack += new
            found |= new.union(children.blobs)
        return found, absent

    async def _children(self, digest: Digest, unread: set[Digest]) -> Children | None:
        """Return what a manifest refers to; None if it is not here, or can't be read. One file may be damaged."""
        try:
            return await self._manifests.of(digest)
        except PeiliError as error:
            self._context.log.debug("%s can't be read, so what it refers to is not known: %s", digest, error)
            unread.add(digest)
            if len(unread) > _MOST_UNREAD:
                raise
        await self._images()  # raises if it is the store that does not answer
        return None

    async def _images(self) -> Collection[tuple[str, str, Digest]]:
        return await call(self._context.store.repositories, self._context, "the store", allowed=(PeiliError,))

    def _is_listed_open(self, digest: Digest) -> bool:
        return self._listed.get(digest, False)

    def _may_open(self, manifest: Digest) -> bool:
        """Return whether an index opens a manifest: not if it arrives now for those with rights, and was not open."""
        return self._listed.get(manifest, False) or not self.arrivals.is_for_others(manifest)
