"""A table that is full forgets its oldest entry."""

from __future__ import annotations

from collections import OrderedDict

import pytest

from peili.mirror.support.newest import put_newest


@pytest.mark.parametrize("table", [dict[str, int](), OrderedDict[str, int]()])
def test_a_full_table_forgets_what_was_set_first(table: dict[str, int]) -> None:
    assert [put_newest(table, name, 0, 2) for name in "ab"] == [False, False]
    assert not put_newest(table, "a", 1, 2), "it is there already, and is the newest now"
    assert put_newest(table, "c", 2, 2)
    assert list(table.items()) == [("a", 1), ("c", 2)]
