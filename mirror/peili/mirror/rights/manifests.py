"""Remembers what manifests refer to. A manifest is named by its digest, so that never changes.

Only what registries look for before they accept a manifest counts (oci/checked_children.py). Otherwise, anybody could
write a manifest that refers to the layer of somebody else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from peili.mirror.errors import Aborted, NotFound, Unavailable
from peili.mirror.oci.checked_children import checked_children_of
from peili.mirror.oci.children import Children
from peili.mirror.oci.references import MAX_MANIFEST, Digest
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.content import read_whole
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.expiring import Expiring
from peili.mirror.support.newest import put_newest

_MOST = 16_384
_MAX_DEPTH = 4  # of an index in an index
_MOST_LOOKED_AT = 4096
"""How many manifests are looked at to find out whether something belongs to an image."""
_MOST_READ = 32
"""How many of them are read from the store."""
_ABSENT = 30.0
"""Seconds for which it is remembered that the store does not have a manifest. It says when it gets one."""


class ManifestChildren:
    """What manifests refer to, from the store and from what was relayed.

    Args:
        context: The context of the mirror. Manifests are read from its store.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: OrderedDict[Digest, Children] = OrderedDict()
        self._absent: Expiring[Digest, None] = Expiring(_MOST)

    def note(self, digest: Digest, data: bytes) -> None:
        """Note the verified bytes of a manifest that the store may not have."""
        if digest not in self._known:
            self._remember(digest, _children(data))

    def note_arrival(self, digest: Digest) -> None:
        """Note that the store has something whole."""
        self._absent.discard(digest)

    async def of(self, digest: Digest) -> Children | None:
        """Return what a manifest refers to; None if it is not here. A blob refers to nothing.

        Raises:
            Unavailable: The store does not answer in time.
        """
        if (known := self._known.get(digest)) is not None:
            self._known.move_to_end(digest)
            return known
        if digest in self._absent:
            return None
        try:
            data = await self._read(digest)
        except NotFound:
            self._absent.set(digest, None, _ABSENT)
            return None
        except Aborted:
            return None
        self._remember(digest, found := _children(data))
        return found

    async def find_parent(self, digest: Digest, roots: Iterable[Digest]) -> Digest | None:
        """Return the one of `roots` that refers to `digest`, itself or through a manifest.

        Args:
            digest: The manifest or the blob.
            roots: Manifests. Those that come first are looked at first, each with what it refers to.

        Returns:
            The root; None if none does, or if there are too many manifests to look at all of them.

        Raises:
            Unavailable: The store does not answer in time.
        """
        seen: set[Digest] = set()
        reads = 0
        for root in roots:
            level = [root]
            for _ in range(_MAX_DEPTH):
                level = [each for each in dict.fromkeys(level) if each not in seen]
                seen.update(level)
                deeper: list[Digest] = []
                for manifest in level:
                    reads += not self._is_settled(manifest)
                    if len(seen) > _MOST_LOOKED_AT or reads > _MOST_READ:
                        return None
                    children = await self.of(manifest) or Children()
                    if digest in children.manifests or digest in children.blobs:
                        return root
                    deeper += children.manifests
                level = deeper
        return None

    def _is_settled(self, digest: Digest) -> bool:
        """Return whether the store need not be asked for a manifest."""
        return digest in self._known or digest in self._absent

    def _remember(self, digest: Digest, children: Children) -> None:
        put_newest(self._known, digest, children, _MOST)
        self._absent.discard(digest)

    async def _read(self, digest: Digest) -> bytes:
        """Return the bytes of a manifest; none of something larger. Raises NotFound, Aborted, Unavailable."""
        read = partial(self._read_from_store, digest)
        return await call(read, self._context, "the store", about=digest, allowed=(NotFound, Aborted, Unavailable))

    async def _read_from_store(self, digest: Digest) -> bytes:
        async with await self._context.store.open(digest) as content:
            is_blob = (content.size or 0) > MAX_MANIFEST
            return b"" if is_blob else await read_whole(content, MAX_MANIFEST)


def _children(data: bytes) -> Children:
    """Return what `data` refers to and its registry has; nothing if it is no manifest, or can be read in two ways."""
    with suppress(ValueError, RecursionError):
        return checked_children_of(data)
    return Children()
