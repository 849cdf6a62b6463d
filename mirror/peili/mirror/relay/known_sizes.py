"""Remembers the sizes that verified content has, or that verified manifests state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Any, cast

from peili.mirror.oci.documents import digest_in, list_of, read_object, size_in
from peili.mirror.oci.references import Digest
from peili.mirror.support.newest import put_newest

_MAX_SIZES = 16 * 1024
"""Digests whose size is remembered; each takes about 150 bytes."""
_DESCRIPTOR_LISTS = ("manifests", "layers", "blobs")
_DESCRIPTORS = ("config", "subject")


class KnownSizes:
    """The size of each digest that was verified, or that a verified manifest or index states.

    With a known size, the relay does not depend on the size that a peer states. If two manifests contradict each other,
    neither is believed. Not thread-safe.

    Args:
        max_sizes: The number of digests to remember. The oldest is dropped for a new one.
    """

    def __init__(self, max_sizes: int = _MAX_SIZES) -> None:
        self._max_sizes = max_sizes
        self._stated: OrderedDict[Digest, int | None] = OrderedDict()  # by manifests; None: they contradict each other
        self._verified: OrderedDict[Digest, int] = OrderedDict()

    def add_verified(self, digest: Digest, size: int) -> None:
        """Note that the whole content of `digest` was verified and has `size` bytes, whatever manifests state."""
        put_newest(self._verified, digest, size, self._max_sizes)

    def add_manifest(self, manifest: bytes) -> Collection[Digest]:
        """Note the sizes that `manifest`, which was verified, states for other digests. Never raises.

        Returns:
            The digests whose sizes it states.
        """
        try:
            document = read_object(manifest)
        except ValueError:
            return ()
        descriptors: list[Any] = [document.get(name) for name in _DESCRIPTORS]
        for name in _DESCRIPTOR_LISTS:
            if isinstance(document.get(name), list):
                descriptors += list_of(document[name])
        named = [self._add_descriptor(cast("dict[str, Any]", each)) for each in descriptors if isinstance(each, dict)]
        return [digest for digest in named if digest is not None]

    def is_verified(self, digest: Digest) -> bool:
        """Return whether the size of `digest` was verified. A size that only a manifest states may be wrong."""
        return digest in self._verified

    def get(self, digest: Digest) -> int | None:
        """Return the size of `digest` in bytes; None if it is not known."""
        return self._verified.get(digest, self._stated.get(digest))

    def _add_descriptor(self, descriptor: dict[str, Any]) -> Digest | None:
        if (size := size_in(descriptor)) is None:
            return None
        try:
            digest = digest_in(descriptor)
        except ValueError:
            return None
        agreed = size if self._stated.get(digest, size) == size else None
        put_newest(self._stated, digest, agreed, self._max_sizes)
        return digest
