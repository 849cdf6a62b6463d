"""A table whose entries end by themselves."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from peili.mirror.support.expiring import Expiring

STEPS = st.one_of(st.floats(0, 5), st.tuples(st.integers(0, 8), st.floats(0.1, 10)))


@given(steps=st.lists(STEPS, max_size=40), most=st.integers(1, 6))
@settings(max_examples=50)
def test_an_entry_stays_for_its_time_and_only_the_oldest_goes_earlier(
    steps: list[float | tuple[int, float]], most: int
) -> None:
    now = 100.0
    table: Expiring[int, float] = Expiring(most, lambda: now)
    model: dict[int, float] = {}
    for step in steps:
        if not isinstance(step, tuple):
            now += step
            continue
        key, seconds = step
        table.set(key, seconds, seconds)
        model.pop(key, None)
        model[key] = now + seconds
        model = dict(list(model.items())[-most:])
        for each in range(9):
            is_there = model.get(each, 0.0) > now
            assert (each in table) == (table.get(each) is not None) == is_there
            assert table.remaining(each) == (model[each] - now if is_there else 0.0)


def test_there_is_room_again_when_entries_have_ended() -> None:
    now = 0.0
    table: Expiring[str, None] = Expiring(2, lambda: now)
    table.set("a", None, 5)
    assert table.has_room()
    table.set("b", None, 10)
    assert not table.has_room()
    now = 5.0
    assert table.has_room()
    table.discard("b")
    assert "b" not in table
