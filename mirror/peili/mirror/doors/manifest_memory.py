"""Remembers manifests that were sent, so that the next request for one opens no file.

A pull by many hosts requests the same few manifests again and again. To open a file takes a thread, which costs more
than everything else in such a request.
"""

from __future__ import annotations

from collections import OrderedDict

from peili.mirror.oci.references import Digest


class ManifestMemory:
    """The manifests that were asked for last. Used on one event loop.

    What it has does not say that the store still has it: ask the store first.

    Args:
        max_bytes: The size of all manifests together. The ones that were not asked for longest are forgotten.
    """

    def __init__(self, max_bytes: int) -> None:
        self._room = max_bytes
        self._manifests: OrderedDict[Digest, bytes] = OrderedDict()

    def get(self, digest: Digest) -> bytes | None:
        """Return the manifest; None if it is not remembered."""
        data = self._manifests.get(digest)
        if data is not None:
            self._manifests.move_to_end(digest)
        return data

    def add(self, digest: Digest, data: bytes) -> None:
        """Remember a manifest, unless `data` does not have the digest."""
        if digest in self._manifests or Digest.of(data, digest.algorithm) != digest:
            return
        self._manifests[digest] = data
        self._room -= len(data)
        while self._room < 0:
            self._room += len(self._manifests.popitem(last=False)[1])
