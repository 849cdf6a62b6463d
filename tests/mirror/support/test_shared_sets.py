"""Equal sets are one object."""

from __future__ import annotations

import gc
from weakref import ref

from peili.mirror.support.shared_sets import SharedSets


def test_equal_sets_are_one_object_while_somebody_uses_it() -> None:
    sets = SharedSets()
    first = sets.share(frozenset({"a", "b"}))
    assert sets.share(frozenset(["b", "a"])) is first
    assert sets.share(frozenset({"c"})) == {"c"}
    used = ref(first)
    del first
    gc.collect()
    assert used() is None
