"""When a home sends a further host upstream, and what becomes of the others."""

from __future__ import annotations

import pytest
from tests.mirror.membership.directory.home import KEY, MIB, Home

from peili.mirror import FailureReason
from peili.mirror.peer_api.leases import FeedFrom, GoUpstream, WaitFor

STEP = 6.0
"""Seconds in which a slow root writes 1 MiB, as containerd does."""


def start(home: Home, hosts: str) -> None:
    assert home.ask(hosts[0]) == GoUpstream()
    for host in hosts[1:]:
        home.feeder(host)


def grow_in_steps(home: Home, hosts: str, seconds: float, said: float | None = None) -> list[str]:
    """Let the first host's file grow by 1 MiB per `STEP`. Returns the first hosts that should ask again.

    Args:
        home: The home.
        hosts: The hosts of a chain.
        seconds: How long.
        said: The rate at which "x" says that it gets something from upstream.
    """
    for tick in range(1, int(2 * seconds) + 1):
        home.now += 0.5
        offset = int(tick / 2 / STEP) * MIB
        home.has(hosts[0], offset)
        home.claims.report("x", [], None if said is None else said + tick)
        home.claims.expire()
        feeders = dict(zip(hosts[1:], hosts, strict=False))
        told = [host for host in hosts[1:] if home.report(host, offset, feeders[host])]
        if told:
            return told
    return []


def test_a_root_that_grows_in_large_steps_gets_help_if_others_are_faster() -> None:
    home = Home()
    start(home, "abc")
    assert grow_in_steps(home, "abc", 2.5 * STEP, said=5.0 * MIB) == ["b"]
    assert home.ask("b", 2 * MIB) == GoUpstream()


@pytest.mark.parametrize(("sent", "is_helped"), [(2.0, True), (5.0, False)])
def test_a_root_that_gets_much_more_than_it_sends_gets_help(sent: float, is_helped: bool) -> None:
    """All hosts behind a slow uplink get little, so that nobody can say that other uplinks are faster."""
    home, told, received = Home(), list[str](), 0
    start(home, "abc")
    for tick in range(1, 11):
        home.now += 0.5
        received = int(tick / 2 * sent * MIB)
        home.has("a", int(tick / 2 * 10 * MIB))
        home.claims.expire()
        told += [host for host, feeder in (("b", "a"), ("c", "b")) if home.report(host, received, feeder)]
    assert bool(told) == is_helped
    if is_helped:
        for _ in range(2):  # its runtime asks again, although the first root has more
            assert home.ask("b", received) == GoUpstream()
        assert home.feeder("c", received) == "b"


def test_what_hosts_repeat_about_content_from_before_is_no_evidence() -> None:
    home = Home()
    start(home, "abc")
    for tick in range(1, 11):
        home.now += 0.5
        home.has("a", tick * MIB // 4)
        home.claims.report("x", [], 10.0 * MIB)  # it repeats what it got until now
        home.claims.expire()
        assert not home.report("b", tick * MIB // 4, "a")


def test_a_root_that_gets_other_content_fast_is_not_slow() -> None:
    home, key = Home(), KEY.replace("0", "1")
    start(home, "abc")
    home.ask("a", key=key)
    for second in range(1, 30):
        home.now += 1.0
        home.has("a", int(second / STEP) * MIB)
        home.has("a", second * 2 * MIB, key)
        home.claims.report("x", [], 5.0 * MIB + second)
        home.claims.expire()
        home.claims.learn_upstream("a", 2.0 * MIB + second)
        assert not home.report("b", int(second / STEP) * MIB, "a")


def test_without_evidence_one_further_host_is_tried_if_the_root_says_so_and_no_third_one() -> None:
    home = Home()
    start(home, "abcd")
    home.claims.doubt("b", KEY)  # it is no root
    home.claims.doubt("a", KEY.replace("0", "1"))
    assert not grow_in_steps(home, "abcd", 60)
    home.claims.doubt("a", KEY)
    home.now += 0.5
    home.claims.expire()
    offset = home.claims.table.fetches()[0].hosts["b"].offset
    assert home.report("b", offset, "a") == [KEY]
    assert home.ask("b", offset) == GoUpstream()
    for tick in range(120):
        home.now += 0.5
        available = offset + int(tick / 2 / STEP) * MIB
        for host in "ab":
            home.has(host, available)
        assert not home.report("c", available, "b")
    assert [*home.claims.table.fetches()[0].roots] == ["a", "b"]


def test_a_slow_root_does_not_become_the_root_of_the_next_layer_if_another_host_asks_at_once() -> None:
    home, key = Home(), KEY.replace("0", "1")
    start(home, "abc")
    home.report("b", 0, "a")
    assert home.ask("a", key=key, upstream_rate=1e5) == WaitFor(0.25)
    home.now += 0.1
    assert home.ask("b", key=key) == GoUpstream()
    home.now += 0.15
    assert home.feeder("a", key=key, upstream_rate=1e5) == "b"


@pytest.mark.parametrize(
    ("rate", "others"),
    [(1e5, None), (1e5, 2e5), (20e6, None), (None, None)],
    ids=["alone", "others are as slow", "fast", "unknown"],
)
def test_a_host_that_is_alone_or_as_fast_as_others_goes_upstream_soon(rate: float, others: float | None) -> None:
    home, key = Home(), KEY.replace("0", "1")
    start(home, "ab")
    if (rate, others) != (1e5, None):
        home.report("b", 0, "a")
    if others is not None:
        home.claims.learn_upstream("c", others)
    assert home.ask("a", key=key, upstream_rate=rate) == GoUpstream()


def test_a_slow_root_goes_upstream_for_the_next_layer_if_nobody_else_asks() -> None:
    home, key = Home(), KEY.replace("0", "1")
    start(home, "ab")
    home.report("b", 0, "a")
    assert home.ask("a", key=key, upstream_rate=1e5) == WaitFor(0.25)
    home.now += 0.25
    home.report("b", 0, "a")
    assert home.ask("a", key=key, upstream_rate=1e5) == GoUpstream()


def test_if_others_get_no_more_from_upstream_nobody_is_tried() -> None:
    home = Home()
    start(home, "abc")
    assert not grow_in_steps(home, "abc", 60, said=MIB / STEP)


def test_the_child_of_a_lost_root_takes_its_place_although_others_have_reported_more_lately() -> None:
    home = Home()
    start(home, "abcd")
    home.has("a", 8 * MIB)
    home.claims.expire()
    for host, feeder in ("ba", "cb"):
        home.report(host, 7 * MIB, feeder)
    home.report("d", 8 * MIB, "c")
    home.gone("a")
    home.now += 0.3
    home.claims.expire()
    assert home.report("b", 8 * MIB, "a") == [KEY]
    assert home.ask("b", 8 * MIB) == GoUpstream()
    assert home.report("c", 8 * MIB, "b") == home.report("d", 8 * MIB, "c") == []


@pytest.mark.parametrize("failed", [{}, {"a": FailureReason.BROKEN}, {"a": FailureReason.STARVING}])
def test_only_one_host_takes_the_place_of_a_root_whose_runtime_was_killed(failed: dict[str, str]) -> None:
    home = Home()
    start(home, "abcd")
    home.has("a", 8 * MIB)
    home.claims.expire()
    for host, feeder in ("ba", "cb", "dc"):
        home.report(host, 8 * MIB, feeder)
    home.gone("a")
    home.now += 0.3
    home.claims.expire()
    assert home.report("b", 8 * MIB, "a") == [KEY]
    assert home.ask("b", 8 * MIB, failed=failed) == GoUpstream()
    for second in range(8):
        home.now += 1.0
        home.has("b", (9 + second) * MIB)
        home.claims.expire()
        for host, feeder in ("cb", "dc"):
            if home.report(host, (9 + second) * MIB, feeder):
                assert home.feeder(host, (9 + second) * MIB) == feeder
    assert list(home.claims.table.fetches()[0].roots) == ["b"]


def test_a_child_of_a_root_that_stopped_moves_to_the_one_that_goes_on() -> None:
    home = Home()
    assert home.ask("a", size=1000) == GoUpstream()  # so small that it feeds both
    assert {home.feeder("b", size=1000), home.feeder("c", size=1000)} == {"a"}
    home.claims.table.fetches()[0].size = 64 * MIB
    home.has("a", 8 * MIB)
    told = set[str]()
    for _ in range(40):
        home.now += 0.5
        told |= {host for host in "bc" if home.report(host, 8 * MIB, "a")}
        if told:
            break
    [root] = told
    assert home.ask(root, 8 * MIB) == GoUpstream()
    [other] = {*"bc"} - told
    home.now += 0.5
    home.has(root, 9 * MIB)
    assert home.report(other, 8 * MIB, "a") == [KEY]
    assert home.feeder(other, 8 * MIB) == root


def test_a_root_whose_runtime_gives_up_without_a_byte_is_replaced_at_once() -> None:
    home = Home()
    start(home, "abc")
    home.has("a", 0)
    home.claims.expire()
    home.gone("a")
    home.claims.expire()
    assert home.report("b", 0, "a") == [KEY]
    assert home.ask("b") == GoUpstream()
    assert home.feeder("c") == "b"
    assert home.feeder("a") == "c"
    assert list(home.claims.table.fetches()[0].roots) == ["b"]


def test_bytes_that_still_arrive_from_a_lost_root_do_not_revive_it() -> None:
    home = Home()
    start(home, "abc")
    home.has("a", 8 * MIB)
    home.claims.expire()
    home.gone("a")
    home.claims.expire()
    home.report("b", 8 * MIB, "a")
    assert not home.claims.table.fetches()[0].is_live("a", home.now)


def test_a_host_that_begins_again_is_no_longer_taken_for_one_with_bytes() -> None:
    home = Home()
    start(home, "abc")
    home.has("a", 20 * MIB)
    for host, feeder in ("ba", "cb"):
        home.report(host, 20 * MIB, feeder)
    for host, feeder in ("ba", "cb"):
        home.report(host, 20 * MIB, feeder, end=FailureReason.WRONG)
    failed = {"a": FailureReason.BROKEN}
    assert home.ask("c", failed=failed) == GoUpstream()
    grant = home.ask("b", failed=failed)
    assert isinstance(grant, FeedFrom)
    assert [(each.id, each.available) for each in grant.holders] == [("c", 0)]
