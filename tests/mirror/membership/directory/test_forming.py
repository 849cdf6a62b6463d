"""Hosts that ask at the same moment form a chain of one order for all layers, no matter which host asks first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from tests.mirror.membership.directory.home import KEY, MIB, Home

from peili.mirror import FailureReason
from peili.mirror.peer_api.leases import FeedFrom, GoUpstream, WaitFor

NAMES = [f"h{number}" for number in range(8)]


def form(home: Home, root: str, hosts: Sequence[str], key: str = KEY) -> list[str]:
    """Let `root` ask, and then the others. Return the chain."""
    assert home.ask_at_once(root, key=key) == GoUpstream()
    for host in hosts:
        assert home.ask_at_once(host, key=key) == WaitFor(0.1)
    home.now += 1.0
    return chain(home, root, hosts, key)


def chain(home: Home, root: str, hosts: Sequence[str], key: str = KEY) -> list[str]:
    """Let all ask again, and return the hosts from `root` on, each of which feeds the next one."""
    child_of = {home.feeder(host, key=key): host for host in hosts}
    assert len(child_of) == len(hosts), "a host feeds two others"
    found = [root]
    while child := child_of.get(found[-1]):
        found.append(child)
    return found


@pytest.mark.parametrize("seed", range(10))
def test_all_layers_have_the_same_chain_no_matter_who_asks_first(seed: int) -> None:
    random = Random(seed)
    root = random.choice(NAMES)
    others = [each for each in NAMES if each != root]
    place = NAMES.index(root)
    for number in range(3):
        found = form(Home(), root, random.sample(others, len(others)), f"sha256:{number:064}")
        assert found == NAMES[place:] + NAMES[:place]


def test_hosts_of_a_zone_are_neighbours() -> None:
    home = Home({"a": "west", "b": "east", "c": "west", "d": "east"})
    assert form(home, "a", "dcb") == ["a", "c", "b", "d"]


def test_a_host_that_comes_later_is_the_last_one() -> None:
    home = Home()
    form(home, "a", "cd")
    assert home.feeder("b") == "d"


def test_a_host_that_comes_before_the_others_ask_again_is_the_last_one() -> None:
    home = Home()
    home.ask_at_once("a")
    for host in "dc":
        home.ask_at_once(host)
    home.now += 1.0
    assert home.feeder("b") == "d"
    assert chain(home, "a", "bcd") == ["a", "c", "d", "b"]


def test_nobody_waits_once_there_are_bytes() -> None:
    home = Home()
    home.ask_at_once("a")
    for host in "dc":
        assert home.ask_at_once(host) == WaitFor(0.1)
    home.has("a", MIB)
    assert home.feeder("b") == "d"
    assert home.feeder("c") == "a"


def test_a_host_that_has_gone_meanwhile_is_not_in_the_chain() -> None:
    home = Home()
    home.ask_at_once("a")
    for host in "bcd":
        home.ask_at_once(host)
    home.report("c", 0, end="gone")
    home.now += 1.0
    assert chain(home, "a", "bd") == ["a", "b", "d"]


@pytest.mark.parametrize(
    "changes",
    [{"size": MIB}, {"size": None}, {"failed": {"x": FailureReason.SILENT}}],
    ids=["small", "of unknown size", "something has failed"],
)
def test_a_host_does_not_wait_where_that_could_cost_more_than_it_gains(changes: dict[str, Any]) -> None:
    home = Home()
    home.ask_at_once("a", **changes)
    assert isinstance(home.ask_at_once("b", **changes), FeedFrom)


def test_hosts_do_not_wait_any_more_if_they_are_too_many_for_a_chain() -> None:
    """The order matters less in a tree, and homes do not know how many hosts will ask."""
    home, hosts = Home(), [f"{number:02}" for number in range(60)]
    home.ask_at_once("root", size=5 * MIB)
    grants = [home.ask_at_once(each, size=5 * MIB) for each in hosts]
    assert isinstance(grants[0], WaitFor)
    assert isinstance(grants[-1], FeedFrom)
    feeders = Counter(home.feeder(each, size=5 * MIB) for each in hosts)
    assert 1 < max(feeders.values()) <= home.limits.children


def test_hosts_wait_in_all_as_long_as_their_root_is_new() -> None:
    home = Home()
    home.ask_at_once("a")
    waits = 0
    while isinstance(wait := home.ask_at_once("b"), WaitFor):
        waits += 1
        home.now += wait.seconds
    assert waits == 10
    assert home.feeder("b") == "a"
