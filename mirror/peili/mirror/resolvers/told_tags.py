"""What registries said about tags: the memory of the resolver ``upstream``."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from peili.mirror.oci.references import Descriptor, Reference
from peili.mirror.peer_api.tags import KnownTag
from peili.mirror.support.newest import put_newest


class ToldTags:
    """What registries said last about tags. Of many, those are forgotten that were not used for longest.

    Args:
        most: How many tags are remembered.
        on_full: Called when one is forgotten.
    """

    def __init__(self, most: int, on_full: Callable[[], None]) -> None:
        self._most = most
        self._on_full = on_full
        self._told: OrderedDict[Reference, tuple[Descriptor, float]] = OrderedDict()

    def get(self, reference: Reference, *, within: float | None = None) -> KnownTag | None:
        """Return what the registry said about `reference`; None if it said nothing `within` this many seconds."""
        if (told := self._told.get(reference)) is None:
            return None
        self._told.move_to_end(reference)
        descriptor, at = told
        age = max(time.monotonic() - at, 0.0)
        return KnownTag(descriptor, age) if within is None or age < within else None

    def note(self, reference: Reference, descriptor: Descriptor, age: float = 0.0) -> None:
        """Remember what a registry said `age` seconds ago, unless something newer is known."""
        known = self.get(reference)
        if known is not None and known.age is not None and known.age < age:
            return
        if put_newest(self._told, reference, (descriptor, time.monotonic() - age), self._most):
            self._on_full()

    def forget(self, reference: Reference) -> None:
        """Forget a tag that the registry no longer has."""
        self._told.pop(reference, None)
