"""What a home knows: sessions, their order and their end, the holders of a key, and the bounds."""

from __future__ import annotations

from typing import Any

import pytest

from peili.mirror import Limits
from peili.mirror.membership.directory.homes import HomeSet, slot_of
from peili.mirror.membership.directory.records import HOLDERS_PER_KEY, MISSED_INTERVALS, Records
from peili.mirror.peer_api.directory import Holding, Holdings

HOMES = ("me", "other")
KEY = "docker.io/library/redis:7"


class Subject(Records):
    """Records with a clock that the test moves."""

    def __init__(self, **limits: Any) -> None:
        self.now = 0.0
        self.limited = list[str]()
        super().__init__("me", Limits(**limits), self.limited.append, lambda: self.now)

    def say(self, host: str, sequence: int, *have: str, **changes: Any) -> bool:
        holdings = tuple(Holding(key, 10) for key in have)
        homes = HOMES if sequence == 0 else None
        values: dict[str, Any] = {"session": "s", "interval": 5.0, "homes": homes, "is_synced": True, "have": holdings}
        return self.apply(host, Holdings(sequence=sequence, **{**values, **changes}))

    def holders(self, key: str = KEY) -> set[str]:
        return {each.id for each in self.find(key).holders}

    def covered(self, key: str = KEY) -> frozenset[str]:
        hosts = self.find(key).hosts
        assert hosts is not None
        return hosts


def test_a_host_is_a_holder_from_when_it_says_so_until_it_takes_it_back() -> None:
    records = Subject()
    assert records.find(KEY).holders == ()
    assert records.say("a", 0, KEY)
    [holder] = records.find(KEY).holders
    assert (holder.id, holder.size, holder.available) == ("a", 10, None)
    assert records.say("a", 1, have=(Holding(KEY, 10, 4),))
    [holder] = records.find(KEY).holders
    assert holder.available == 4
    assert records.say("a", 2, gone=(KEY, "unknown"))
    assert records.holders() == set()
    assert len(records) == 0


def test_a_message_may_be_repeated_but_none_may_be_missing() -> None:
    records = Subject()
    assert not records.say("a", 1), "no session"
    assert records.say("a", 0, KEY)
    assert records.say("a", 0, KEY)
    assert records.say("a", 1)
    assert records.say("a", 1)
    assert not records.say("a", 3)
    assert not records.say("a", 0), "the session is beyond that"
    assert not records.say("a", 2, session="another")
    assert not records.say("b", 0, homes=None)
    assert records.say("a", 2)
    assert records.holders() == {"a"}


def test_a_new_session_replaces_the_one_before() -> None:
    records = Subject()
    records.say("a", 0, KEY, "old")
    assert records.say("a", 0, KEY, session="new")
    assert records.holders() == {"a"}
    assert records.holders("old") == set()
    assert len(records) == 1


def test_a_host_that_says_nothing_is_forgotten() -> None:
    records = Subject()
    records.say("a", 0, KEY, interval=5.0)
    records.say("b", 0, KEY, interval=10.0)
    records.now = 5.0 * MISSED_INTERVALS
    records.say("b", 1, interval=10.0)
    records.expire()
    assert records.holders() == records.covered() == {"b"}
    records.now += 10.0
    records.say("b", 2, interval=10.0)
    records.now += 10.0 * MISSED_INTERVALS - 1
    records.expire()
    assert records.holders() == {"b"}
    records.forget("b")
    records.forget("unknown")
    assert len(records) == len(records.hosts) == 0
    assert not records.say("a", 1), "it has to send everything"


def test_a_host_that_is_late_is_still_a_holder_but_is_not_covered() -> None:
    records = Subject()
    records.say("a", 0, KEY, interval=5.0)
    records.now = 9.9
    records.expire()
    assert records.covered() == {"a"}
    records.now = 10.0
    records.expire()
    assert (records.holders(), records.covered()) == ({"a"}, frozenset())
    assert records.say("a", 1)
    assert records.covered() == {"a"}


def test_a_host_is_covered_while_it_is_synced_and_this_is_one_of_its_homes_for_the_key() -> None:
    records = Subject()
    records.say("a", 0, is_synced=False)
    assert records.covered() == frozenset()
    records.say("a", 1)
    records.say("b", 0, homes=("other", "another"))
    records.say("c", 0, homes=("me", "x", "y", "z"))
    assert "a" in records.covered()
    assert "b" not in records.covered()
    homes = HomeSet(frozenset({"me", "x", "y", "z"}))
    for number in range(50):
        key = f"key-{number}"
        assert ("c" in records.covered(key)) == ("me" in homes.homes_of(slot_of(key)))


def test_a_host_that_moves_to_other_homes_is_covered_again_once_it_is_synced() -> None:
    records = Subject()
    records.say("a", 0, KEY)
    records.say("b", 0, KEY)
    records.say("a", 1, homes=("me",), is_synced=False)
    assert records.covered() == {"b"}
    records.say("a", 2, is_synced=True)
    assert records.covered() == {"a", "b"}
    assert records.holders() == {"a", "b"}


def test_the_list_of_hosts_is_left_out_if_its_version_is_known() -> None:
    records = Subject()
    records.say("a", 0, KEY)
    first = records.find(KEY)
    again = records.find(KEY, ["x", first.version])
    assert again.hosts is None
    assert again.version == first.version
    records.say("a", 1, "more")
    assert records.find(KEY).version == first.version, "it is about hosts, not about keys"
    records.say("b", 0)
    assert records.find(KEY, [first.version]).hosts == frozenset({"a", "b"})
    assert Subject().find(KEY).version != first.version, "another run of the home"


def test_a_home_keeps_some_holders_of_a_key_and_knows_when_they_are_too_few() -> None:
    records = Subject()
    hosts = [f"host-{number}" for number in range(HOLDERS_PER_KEY + 10)]
    for host in hosts:
        records.say(host, 0, KEY)
    assert len(records.holders()) == len(records) == HOLDERS_PER_KEY
    assert records.covered() == set(hosts)
    for host in sorted(records.holders())[: HOLDERS_PER_KEY // 2]:
        records.say(host, 1, gone=(KEY,))
    assert records.covered() == frozenset(), "a host that is not a holder here may have the key"
    assert records.covered("another") == set(hosts)
    for host in set(hosts) - records.holders():
        if not records.say(host, 1, gone=(KEY,)):
            records.say(host, 2, gone=(KEY,))
    assert records.covered() == set(hosts)


def test_all_holders_that_were_kept_may_go_while_others_remain() -> None:
    records = Subject()
    hosts = [f"host-{number}" for number in range(HOLDERS_PER_KEY + 1)]
    for host in hosts:
        records.say(host, 0, KEY)
    [last] = set(hosts) - records.holders()
    for host in set(hosts) - {last}:
        records.forget(host)
    assert records.holders() == set()
    assert records.covered() == frozenset()
    records.forget(last)
    records.say("a", 0)
    assert records.covered() == {"a"}


@pytest.mark.parametrize("limit", ["directory_keys", "directory_records"])
def test_a_host_with_more_keys_than_are_kept_is_not_covered(limit: str) -> None:
    records = Subject(**{limit: 2})
    records.say("a", 0, "1", "2")
    assert records.covered() == {"a"}
    records.say("a", 1, "2")
    assert records.covered() == {"a"}, "it has no more keys than before"
    records.say("a", 2, "3")
    assert records.covered() == frozenset()
    assert len(records) == 2
    assert records.limited == [limit]
    records.say("a", 3, "4", is_synced=True)
    assert records.covered() == frozenset()
    assert records.limited == [limit], "once for a session"
    assert records.say("a", 0, "1", session="new")
    assert records.covered() == {"a"}


def test_a_complete_holder_takes_the_place_of_one_that_has_a_part() -> None:
    records = Subject()
    for number in range(HOLDERS_PER_KEY + 10):
        records.say(f"partial-{number}", 0, have=(Holding(KEY, 10, 5),))
    assert records.say("complete", 0, KEY)
    found = records.find(KEY)
    assert len(found.holders) == len(records) == HOLDERS_PER_KEY
    assert [each.id for each in found.holders if each.available is None] == ["complete"]
    assert len(records.covered()) == HOLDERS_PER_KEY + 11, "no complete holder is missing among the holders"
    assert records.say("partial-0", 1, KEY), "what it has is complete now"
    complete = {each.id for each in records.find(KEY).holders if each.available is None}
    assert complete == {"complete", "partial-0"}
    for host in set(records.hosts) - {"complete"}:
        records.say(host, 2 if host == "partial-0" else 1, gone=(KEY,))
    assert records.holders() == {"complete"}
    assert "complete" in records.covered()


def test_while_complete_holders_are_missing_only_many_complete_ones_show_who_has_nothing() -> None:
    records = Subject()
    for number in range(HOLDERS_PER_KEY + 1):
        records.say(f"complete-{number}", 0, KEY)
    for number in range(HOLDERS_PER_KEY):
        records.say(f"partial-{number}", 0, have=(Holding(KEY, 10, 5),))
    assert records.covered(), "half of the complete holders are enough for a lookup"
    sent_back = list(records.holders())[: HOLDERS_PER_KEY // 2]
    for host in sent_back:
        records.say(host, 1, gone=(KEY,))
    for number in range(HOLDERS_PER_KEY):
        records.say(f"partial-{number}", 1, have=(Holding(KEY, 10, 6),))
    assert len(records.find(KEY).holders) == HOLDERS_PER_KEY
    assert not records.covered(), "the one that is not kept may be the only one that is left"
