"""Finds out to whom content of this host belongs: to everybody, or only to those who may pull covered images.

Content is open if an image of this host that is not covered has it, or if a registry said that a repository that is not
covered has it. Content of no image is open if this host's runtime has requested it for such repositories only, before
its first byte was here. All other content is closed. So what is not known is closed.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from contextlib import aclosing
from enum import Enum, auto

from peili.mirror.errors import PeiliError
from peili.mirror.oci.references import Digest, Key, Reference
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.content import Gone, Have
from peili.mirror.plugins.interfaces import Context
from peili.mirror.rights.coverage import Coverage
from peili.mirror.rights.manifests import ManifestChildren
from peili.mirror.support.tasks import Backoff, is_cancelled

_PAUSE = 1.0
"""Seconds between two readings of the list of images."""
_MOST = 65_536
"""How many digests are remembered of which a registry or a request has said something."""


class Belonging(Enum):
    """To whom content belongs.

    Attributes:
        OPEN: Everybody who asks for it may have it.
        CLOSED: It is known only from covered repositories.
        UNKNOWN: Nothing is known. Other hosts do not get it either.
    """

    OPEN = auto()
    CLOSED = auto()
    UNKNOWN = auto()


class Repositories:
    """Which repositories have a digest, as far as this host knows. Used on one event loop.

    Args:
        context: The context of the mirror.
        coverage: Which repositories are covered.
        manifests: What manifests refer to.
    """

    def __init__(self, context: Context, coverage: Coverage, manifests: ManifestChildren) -> None:
        self._context = context
        self._coverage = coverage
        self._manifests = manifests
        self._listed: dict[Digest, bool] = {}  # what belongs to images, and whether to one that is not covered
        self._confirmed: OrderedDict[Digest, None] = OrderedDict()  # a registry said that it is open
        self._requested: OrderedDict[Digest, bool] = OrderedDict()  # whether only for what is not covered
        self._unexplained: OrderedDict[Digest, None] = OrderedDict()  # began to arrive without a request
        self._is_outdated = True
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    def note_request(self, digest: Digest, *, is_covered: bool) -> None:
        """Note that this host's runtime has requested content that the store does not have, for a repository."""
        self._requested[digest] = self._requested.get(digest, True) and not is_covered
        _bound(self._requested, digest)

    def confirm(self, digest: Digest) -> None:
        """Note that, as a registry says, a repository that is not covered has `digest`."""
        self._confirmed[digest] = None
        _bound(self._confirmed, digest)

    def was_requested_for_covered(self, digest: Digest) -> bool:
        """Return whether this host's runtime has requested `digest` for a covered repository."""
        return not self._requested.get(digest, True)

    def is_certainly_open(self, digest: Digest) -> bool:
        """Return whether `digest` is known to be open. Costs nothing; False may only mean that nobody has looked."""
        return digest in self._confirmed or self._listed.get(digest, False)

    async def belonging(self, digest: Digest) -> Belonging:
        """Return to whom `digest` belongs. `Belonging.UNKNOWN` if the store does not answer and nothing else is known.

        The list of images is read again if it may have changed, but at most once a second.
        """
        if not self.is_certainly_open(digest):
            await self._update()
        if self.is_certainly_open(digest):
            return Belonging.OPEN
        if digest in self._listed:
            return Belonging.CLOSED
        is_open = self._requested.get(digest)
        if is_open is None or (is_open and digest in self._unexplained):
            return Belonging.UNKNOWN
        return Belonging.OPEN if is_open else Belonging.CLOSED

    async def is_open(self, key: Key) -> bool:
        """Return whether every host may know that this host has `key`, and get its content."""
        if isinstance(key, Reference):
            return not self._coverage.covers(key.registry, key.repository)
        return self.is_certainly_open(key) or await self.belonging(key) is Belonging.OPEN

    async def run(self) -> None:
        """Follow the store until cancelled: which images change, and what arrives without a request."""
        limits, log = self._context.limits, self._context.log
        backoff = Backoff(limits.backoff_min, limits.backoff_max)
        while True:
            try:
                await self._follow(backoff)
            except (Exception, asyncio.CancelledError) as error:  # a plug-in may raise anything
                if is_cancelled(error):
                    raise
                log.warning("to whom content belongs is not followed: %s", str(error) or repr(error))
            self._is_outdated = True
            await backoff.sleep()

    async def _follow(self, backoff: Backoff) -> None:
        async with aclosing(self._context.store.watch()) as batches:
            async for batch in batches:
                for event in batch:
                    match event:
                        case Have(key=key, complete=False, available=available) if isinstance(key, Digest):
                            self._note_arrival(key, available)
                        case Have():
                            self._is_outdated = True
                        case Gone(key=key) if isinstance(key, Digest):
                            self._unexplained.pop(key, None)
                        case Gone():
                            self._is_outdated = True
                        case _:
                            pass
                backoff.reset()

    def _note_arrival(self, digest: Digest, available: int | None) -> None:
        if available and digest not in self._requested:
            self._unexplained[digest] = None
            _bound(self._unexplained, digest)

    async def _update(self) -> None:
        """Read the list of images, if it may have changed. Only one task reads it, and the others wait."""
        async with self._reading:
            if not self._is_outdated or time.monotonic() < self._read_at + _PAUSE:
                return
            self._is_outdated = False
            try:
                self._listed = await self._read_images()
            except PeiliError as error:
                self._is_outdated = True
                self._context.log.debug("to whom content belongs is not known: %s", error)
            self._read_at = time.monotonic()

    async def _read_images(self) -> dict[Digest, bool]:
        """Return what belongs to images, and whether it is open. Raises PeiliError."""
        listed: dict[Digest, bool] = {}
        images = await call(self._context.store.repositories, self._context, "the store", allowed=(PeiliError,))
        roots = {
            is_open: {
                digest
                for registry, repository, digest in images
                if is_open is not self._coverage.covers(registry, repository)
            }
            for is_open in (False, True)  # in this order: what an open image has, too, is open
        }
        for is_open, waiting in roots.items():
            found, stack = set(waiting), list(waiting)
            while stack:
                children = await self._manifests.of(stack.pop())
                if children is not None:
                    stack += [each for each in children.manifests if each not in found]
                    found |= {*children.manifests, *children.blobs}
            listed |= dict.fromkeys(found, is_open)
        return listed


def _bound(table: OrderedDict[Digest, bool] | OrderedDict[Digest, None], digest: Digest) -> None:
    """Note that the entry of `digest` was used, and remove the oldest one if there are too many."""
    table.move_to_end(digest)
    if len(table) > _MOST:
        table.popitem(last=False)
