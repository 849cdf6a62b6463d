"""Remembers what manifests refer to. A manifest is named by its digest, so that never changes.

What has ``urls`` does not count: registries accept a manifest that refers to it, whether they have it or not. So
anybody could write a manifest that refers to the layer of somebody else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress

from peili.mirror.errors import PeiliError
from peili.mirror.oci.children import Children, all_children_of
from peili.mirror.oci.references import MAX_MANIFEST, Digest
from peili.mirror.plugins.calls import CallFailed, call
from peili.mirror.plugins.interfaces import Context

_MOST = 16_384
_MAX_DEPTH = 4  # of an index in an index
_MOST_READ = 512
"""How many manifests are looked at to find out whether something belongs to an image."""


class ManifestChildren:
    """What manifests refer to, from the store and from what was relayed.

    Args:
        context: The context of the mirror. Manifests are read from its store.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: OrderedDict[Digest, Children] = OrderedDict()

    def note(self, digest: Digest, data: bytes) -> None:
        """Note the verified bytes of a manifest that the store may not have."""
        if digest not in self._known:
            self._remember(digest, _children(data))

    async def of(self, digest: Digest) -> Children | None:
        """Return what a manifest refers to; None if it is not here. A blob refers to nothing.

        Raises:
            Unavailable: The store does not answer in time.
        """
        if (known := self._known.get(digest)) is not None:
            self._known.move_to_end(digest)
            return known
        data = await self._read(digest)
        if data is None:
            return None
        self._remember(digest, found := _children(data))
        return found

    async def find_parent(self, digest: Digest, roots: Iterable[Digest]) -> Digest | None:
        """Return the one of `roots` that refers to `digest`, itself or through a manifest; None if none does.

        Raises:
            Unavailable: The store does not answer in time.
        """
        level = {root: root for root in roots}  # each manifest, and the root that leads to it
        seen = set(level)
        for _ in range(_MAX_DEPTH):
            deeper: dict[Digest, Digest] = {}
            for manifest, root in level.items():
                children = await self.of(manifest)
                if children is None:
                    continue
                if digest in children.manifests or digest in children.blobs:
                    return root
                deeper |= dict.fromkeys((each for each in children.manifests if each not in seen), root)
            seen |= deeper.keys()
            if not deeper or len(seen) > _MOST_READ:
                return None
            level = deeper
        return None

    def _remember(self, digest: Digest, children: Children) -> None:
        self._known[digest] = children
        if len(self._known) > _MOST:
            self._known.popitem(last=False)

    async def _read(self, digest: Digest) -> bytes | None:
        """Return the bytes of a manifest; none of something larger; None if the store does not have it."""
        try:
            return await call(
                lambda: self._read_from_store(digest), self._context, "the store", about=digest, allowed=(PeiliError,)
            )
        except CallFailed:
            raise
        except PeiliError:
            return None

    async def _read_from_store(self, digest: Digest) -> bytes | None:
        async with await self._context.store.open(digest) as content:
            size = content.size or 0
            data, count = bytearray(size if size <= MAX_MANIFEST else 0), 0
            while count < len(data):
                read = await content.readinto(count, memoryview(data)[count:])
                if not read:
                    return None
                count += read
        return bytes(data)


def _children(data: bytes) -> Children:
    """Return what `data` refers to and its registry has; nothing if it is no manifest."""
    with suppress(ValueError, RecursionError):
        return all_children_of(data, with_foreign=False)
    return Children()
