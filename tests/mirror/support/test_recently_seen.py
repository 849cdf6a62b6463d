"""A set of what was seen lately, in constant memory."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from peili.mirror.support.recently_seen import RecentlySeen


@given(steps=st.lists(st.one_of(st.floats(0, 40), st.integers(0, 5)), max_size=40))
@settings(max_examples=50)
def test_a_text_stays_for_its_time_and_at_most_half_as_long_again(steps: list[float | int]) -> None:
    now = 100.0
    seen, added = RecentlySeen(20.0, lambda: now), dict[str, float]()
    for step in steps:
        if isinstance(step, float):
            now += step
        else:
            seen.add(str(step))
            added[str(step)] = now
        for text in map(str, range(6)):
            age = now - added.get(text, -1e9)
            if text in seen:
                assert age <= 30.001
            else:
                assert age >= 19.999


def test_many_texts_make_it_contain_no_others() -> None:
    seen = RecentlySeen(20.0)
    for number in range(20_000):
        seen.add(str(number))
    assert all(str(number) in seen for number in range(20_000))
    assert sum(str(-number) in seen for number in range(1, 1000)) <= 2
