"""Which members are homes: the same for every host, evenly spread, and stable when a member comes or goes."""

from __future__ import annotations

from collections import Counter

import pytest

from peili.mirror.membership.directory.homes import HOMES_PER_KEY, SLOTS, HomeSet, choose_homes, slot_of


def ids(count: int) -> list[str]:
    return [f"host-{number}" for number in range(count)]


def test_the_rules_are_those_of_the_documentation() -> None:
    """These values are fixed: all versions and implementations have to agree on them."""
    assert [slot_of(key) for key in ("a", "docker.io/library/redis:7")] == [663, 237]
    assert HomeSet(frozenset(ids(5))).homes_of(0) == ("host-3", "host-2")
    assert min(choose_homes(ids(200))) == "host-10"


@pytest.mark.parametrize("count", [0, 1, 2, 10, 64])
def test_all_of_a_few_members_are_homes(count: int) -> None:
    assert choose_homes(ids(count)) == frozenset(ids(count))
    homes = HomeSet(choose_homes(ids(count)))
    assert {len(homes.homes_of(slot)) for slot in range(SLOTS)} == {min(count, HOMES_PER_KEY)}


def test_at_most_64_of_many_members_are_homes_in_any_order() -> None:
    assert len(choose_homes(ids(1000))) == 64
    assert choose_homes(reversed(ids(1000))) == choose_homes(ids(1000))


def test_a_member_that_is_no_home_moves_nothing() -> None:
    homes = choose_homes(ids(1000))
    other = next(each for each in ids(1000) if each not in homes)
    assert choose_homes([each for each in ids(1000) if each != other]) == homes


def test_when_a_home_leaves_only_one_member_takes_its_place_and_only_its_slots_move() -> None:
    before = choose_homes(ids(1000))
    gone = min(before)
    after = choose_homes([each for each in ids(1000) if each != gone])
    assert len(before - after) == len(after - before) == 1
    one, other = HomeSet(before), HomeSet(after)
    moved = [slot for slot in range(SLOTS) if set(one.homes_of(slot)) != set(other.homes_of(slot))]
    for slot in moved:
        assert gone in one.homes_of(slot) or after - before & set(other.homes_of(slot))
    assert len(moved) < 4 * HOMES_PER_KEY * SLOTS / 64


@pytest.mark.parametrize("count", [3, 10, 64])
def test_slots_are_spread_evenly(count: int) -> None:
    homes = HomeSet(frozenset(ids(count)))
    load = Counter(home for slot in range(SLOTS) for home in homes.homes_of(slot))
    expected = HOMES_PER_KEY * SLOTS / count
    assert len(load) == count
    assert max(load.values()) < 2 * expected
    assert min(load.values()) > expected / 2


def test_keys_are_spread_over_the_slots() -> None:
    load = Counter(slot_of(f"sha256:{number:064x}") for number in range(20 * SLOTS))
    assert len(load) == SLOTS
    assert max(load.values()) < 60
