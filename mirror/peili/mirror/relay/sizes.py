"""Remembers how long content is, from manifests that were verified, and of what was itself verified whole. A peer's
word for it need not be taken then.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any, cast

from peili.mirror.oci.references import Digest

_ENTRIES = 16 * 1024
"""Digests remembered, of some 150 bytes each."""
_LISTS = ("manifests", "layers", "blobs")
_SINGLE = ("config", "subject")


class Sizes:
    """The size of each digest that a verified manifest or index named, or that was seen. Bounded. Not thread-safe.

    Two manifests may contradict each other, and either may be the wrong one; then neither is believed.
    """

    def __init__(self, entries: int = _ENTRIES) -> None:
        self._entries = entries
        self._known: OrderedDict[Digest, int | None] = OrderedDict()
        self._seen: OrderedDict[Digest, int] = OrderedDict()

    def see(self, digest: Digest, size: int) -> None:
        """All of `digest` was verified: it has `size` bytes, whatever manifests say."""
        self._seen[digest] = size
        self._seen.move_to_end(digest)
        while len(self._seen) > self._entries:
            self._seen.popitem(last=False)

    def learn(self, manifest: bytes) -> None:
        """Note what `manifest`, which is verified, says of others. Never raises."""
        try:
            document: Any = json.loads(manifest)
        except (ValueError, RecursionError):
            return
        if not isinstance(document, dict):
            return
        fields = cast("dict[str, Any]", document)
        named: list[Any] = [fields.get(name) for name in _SINGLE]
        for name in _LISTS:
            if isinstance(fields.get(name), list):
                named += cast("list[Any]", fields[name])
        for each in named:
            if isinstance(each, dict):
                self._note(cast("dict[str, Any]", each))

    def is_seen(self, digest: Digest) -> bool:
        """Whether the size of `digest` is known for certain: what a manifest says may be wrong."""
        return digest in self._seen

    def of(self, digest: Digest) -> int | None:
        """How many bytes `digest` has; None where that is not known."""
        return self._seen.get(digest, self._known.get(digest))

    def _note(self, descriptor: dict[str, Any]) -> None:
        text, size = descriptor.get("digest"), descriptor.get("size")
        if not isinstance(text, str) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
            return
        try:
            digest = Digest(text)
        except ValueError:
            return
        self._known[digest] = size if self._known.get(digest, size) == size else None
        self._known.move_to_end(digest)
        while len(self._known) > self._entries:
            self._known.popitem(last=False)
