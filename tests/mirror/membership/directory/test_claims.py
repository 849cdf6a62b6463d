"""What a home decides: who goes upstream, and who feeds whom."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.mirror.membership.directory.home import KEY, MIB, Home

from peili.mirror import FailureReason, LeaseEnd
from peili.mirror.membership.directory.fetcher import Fetcher
from peili.mirror.membership.directory.fetches import Fetch
from peili.mirror.membership.directory.link_rates import LinkRates
from peili.mirror.membership.directory.slow_hosts import blame_feeder
from peili.mirror.peer_api.leases import FeedFrom, GoUpstream, WaitFor


def test_the_first_host_goes_upstream_and_the_next_ones_form_a_chain() -> None:
    home = Home()
    assert home.ask("a") == GoUpstream()
    assert [home.feeder(each) for each in "bcd"] == ["a", "b", "c"]


def test_a_repeated_request_gets_the_same_answer() -> None:
    home = Home()
    for _ in range(2):
        assert home.ask("a") == GoUpstream()
        assert home.feeder("b") == "a"
        assert home.feeder("c") == "b"


def test_whole_holders_come_first_and_a_lone_host_gets_several() -> None:
    home = Home()
    for host in "xyz":
        home.has(host, None)
    grant = home.ask("a")
    assert isinstance(grant, FeedFrom)
    assert {each.id for each in grant.holders} == {"x", "y", "z"}
    assert all(each.available is None for each in grant.holders)


def test_a_host_that_got_nothing_from_upstream_is_not_waited_for() -> None:
    home = Home()
    home.ask("a")
    assert home.feeder("b") == "a"
    home.now += home.limits.claim_timeout + 1
    home.claims.expire()
    assert home.report("b", 0, "a") == [KEY]
    assert home.ask("b") == GoUpstream()
    assert home.feeder("c") == "b"


def test_bytes_prove_a_claim() -> None:
    home = Home()
    home.ask("a")
    assert home.feeder("b") == "a"
    home.has("a", 1)
    home.now += 10 * home.limits.claim_timeout
    home.has("a", 2)
    home.claims.expire()
    assert home.report("b", 1, "a") == []
    assert home.feeder("b", 1) == "a"


def test_a_host_that_can_not_share_goes_upstream_without_holding_up_the_others() -> None:
    home = Home()
    assert home.ask("a", can_share=False) == GoUpstream()
    assert home.ask("b") == GoUpstream()
    assert home.feeder("c") == "b"


def test_a_feeder_that_failed_is_replaced() -> None:
    home = Home()
    for host in "abcd":
        home.ask(host)
    home.has("a", 5 * MIB)
    assert home.feeder("c", MIB, failed={"b": FailureReason.UNREACHABLE}) == "a"


def test_wrong_bytes_bar_both_ends_of_the_link() -> None:
    home = Home()
    for host in "abc":
        home.ask(host)
    home.has("a", MIB)
    home.ask("c", MIB, failed={"b": FailureReason.WRONG})
    assert home.feeder("d") == "a"


def test_nobody_is_sent_upstream_while_the_members_change() -> None:
    home = Home()
    home.claims.settle()
    grant = home.ask("a")
    assert isinstance(grant, WaitFor)
    home.now += grant.seconds
    assert home.ask("a") == GoUpstream()


def test_a_host_that_is_done_feeds_others_and_one_that_left_is_forgotten() -> None:
    home = Home()
    for host in "abc":
        home.ask(host)
    home.has("a", 64 * MIB)
    home.report("b", 64 * MIB, "a", end=LeaseEnd.DONE)
    home.report("c", 0, "b", end=LeaseEnd.GONE)
    assert len(home.claims) == 2
    assert home.feeder("d") == "b"


def test_a_full_home_sends_hosts_upstream() -> None:
    home = Home(claim_keys=1, claim_hosts=2)
    home.ask("a")
    assert home.ask("a", key="another") == GoUpstream()
    assert home.feeder("b") == "a"
    assert home.ask("c") == GoUpstream()
    assert home.limited == ["claim_keys", "claim_hosts"]
    assert len(home.claims) == 2


def advance(home: Home, hosts: str, rates: dict[str, float], seconds: float, offsets: dict[str, int]) -> set[str]:
    """Let hosts receive at their rates, report twice a second, and return those that should ask again."""
    told = set[str]()
    for _ in range(int(seconds * 2)):
        home.now += 0.5
        for host in hosts:
            offsets[host] = min(64 * MIB, offsets.get(host, 0) + int(rates[host] * MIB / 2))
            fetch = home.claims.table.fetches()[0]
            feeders = fetch.hosts[host].feeders if host in fetch.hosts else ()
            if home.report(host, offsets[host], feeders[0] if feeders else None):
                told.add(host)
    return told


def test_hosts_of_the_same_zone_feed_each_other_where_that_is_free() -> None:
    home = Home({"a": "west", "b": "east", "x": "east", "y": "west"})
    home.has("x", None)
    home.has("y", None)
    assert [home.feeder(each, can_share=False) for each in "ab"] == ["y", "x"]


def test_a_host_with_several_holders_leaves_room_for_others() -> None:
    home = Home()
    for host in "xyz":
        home.has(host, None)
    grant = home.ask("a")
    assert isinstance(grant, FeedFrom)
    first = grant.holders[0].id
    assert {home.feeder("b"), home.feeder("c")} == {*"xyz"} - {first}
    assert home.feeder("d") in {"a", "b", "c"}, "each uplink is used once"


def test_small_content_goes_through_a_tree() -> None:
    home = Home()
    home.ask("root", size=1000)
    depths = {"root": 0}
    for number in range(60):
        depths[str(number)] = depths[home.feeder(str(number), size=1000)] + 1
    assert max(depths.values()) <= 4


def test_a_chain_has_an_end() -> None:
    home = Home()
    home.ask("root", size=10**12)
    depths = {"root": 0}
    for number in range(300):
        depths[str(number)] = depths[home.feeder(str(number), size=10**12)] + 1
    assert max(depths.values()) <= 64


def test_hosts_that_are_too_many_for_a_chain_share_only_uplinks_far_from_the_root() -> None:
    home = Home()
    home.ask("0")
    feeders = [home.feeder(str(number)) for number in range(1, 90)]
    counts = Counter(feeders)
    assert [counts[str(number)] for number in range(50)] == [1] * 50
    assert max(counts.values()) == 2


def test_hosts_that_share_an_uplink_move_to_whole_holders_that_are_free() -> None:
    home = Home()
    home.ask("0")
    feeders = {str(number): home.feeder(str(number)) for number in range(1, 90)}
    crowded = {host for host, feeder in feeders.items() if [*feeders.values()].count(feeder) == 2}
    home.now += 1
    home.has("0", 32 * MIB)
    for host, feeder in feeders.items():
        home.report(host, 32 * MIB, feeder)
    for host in ("holder", "another"):
        home.has(host, None)
    home.now += 1
    home.claims.expire()
    told = {host for host, feeder in feeders.items() if home.report(host, 33 * MIB, feeder) == [KEY]}
    assert len(told) == 2
    assert told < crowded
    assert {home.feeder(host, 33 * MIB) for host in told} == {"holder", "another"}
    home.now += 1
    assert not any(home.report(host, 34 * MIB, feeders[host]) for host in feeders.keys() - told)


def test_a_host_that_reads_from_several_holders_takes_a_share_of_the_first_only() -> None:
    fetch = Fetch(KEY, 4, Counter())
    hosts = {name: Fetcher(name, "", since=0, heard=0, grew=0) for name in ("one", "two", "a", "b", "c")}
    for each in hosts.values():
        fetch.add(each)
    for name in ("one", "two"):
        fetch.set_whole(hosts[name], 0)
    fetch.feed(hosts["a"], ("one", "two"), 0)
    fetch.feed(hosts["b"], ("two",), 0)
    assert not fetch.sharing()
    fetch.feed(hosts["c"], ("two",), 0)
    assert fetch.sharing() == [hosts["c"]]


def test_hosts_do_not_leave_their_zone_for_a_whole_holder() -> None:
    home = Home({str(number): "west" for number in range(90)} | {"holder": "east"})
    home.ask("0")
    feeders = {str(number): home.feeder(str(number)) for number in range(1, 90)}
    home.now += 1
    home.has("holder", None)
    home.has("0", 32 * MIB)
    home.claims.expire()
    assert not any(home.report(host, 32 * MIB, feeder) for host, feeder in feeders.items())


def test_a_host_that_is_no_longer_called_slow_takes_a_share_of_its_feeder() -> None:
    """If a child is slow with a second feeder, too, the first one was not to blame."""
    fetch = Fetch(KEY, 4, Counter())
    hosts = {name: Fetcher(name, "", since=0, heard=0, grew=0, can_share=True) for name in ("root", "a", "b", "child")}
    for each in hosts.values():
        fetch.add(each)
    fetch.feed(hosts["a"], ("root",), 0)
    hosts["a"].is_slow = True
    fetch.arrange("root")
    assert hosts["root"].place == ("", 1, 0)
    rates = LinkRates()
    assert blame_feeder(fetch, hosts["a"], hosts["child"], rates) is hosts["a"]
    assert blame_feeder(fetch, hosts["b"], hosts["child"], rates) is hosts["child"]
    assert hosts["root"].place == ("", 1, 1)


def test_a_slow_host_feeds_nobody_and_moves_to_the_end() -> None:
    home, offsets = Home(), dict[str, int]()
    for host in "abcd":
        home.ask(host)
    told = advance(home, "abcd", {"a": 12, "b": 12, "c": 1.2, "d": 1.2}, 2, offsets)
    assert "c" in told, "b sends slowly"
    assert home.feeder("c", offsets["c"]) == "a"
    home.now += 0.5
    assert home.report("b", offsets["b"], "a") == [KEY]
    assert home.feeder("b", offsets["b"]) == "d", "it no longer takes a share of the uplink of a"
    assert home.feeder("e") == "d"


def test_a_host_that_is_slow_with_each_feeder_is_slow_itself() -> None:
    home, offsets = Home(), dict[str, int]()
    for host in "abcd":
        home.ask(host)
    rates = {"a": 12.0, "b": 12.0, "c": 1.2, "d": 1.2}
    advance(home, "abcd", rates, 2, offsets)
    home.feeder("c", offsets["c"])
    told = advance(home, "abcd", rates, 3, offsets)
    assert "d" in told, "c receives slowly"
    assert home.feeder("d", offsets["d"]) in {"a", "b"}


def test_a_slow_root_gets_help_if_others_are_known_to_be_faster() -> None:
    home, offsets = Home(), dict[str, int]()
    for host in "abc":
        home.ask(host)
    home.now += 5.1
    home.claims.report("x", [], 10.0 * MIB)
    told = advance(home, "abc", {"a": 1, "b": 1, "c": 1}, 4, offsets)
    assert told == {"b"}, "it has the most bytes"
    assert home.ask("b", offsets["b"]) == GoUpstream()
    assert home.feeder("c", offsets["c"]) == "b"
    assert home.feeder("d") == "c"


def test_hosts_move_to_the_root_that_is_ahead() -> None:
    home, offsets = Home(), dict[str, int]()
    home.ask("a", size=1000)  # so small that a feeds several
    for host in "bcd":
        assert home.feeder(host, size=1000) == "a"
    home.claims.table.fetches()[0].size = 64 * MIB
    home.now += 5.1
    home.claims.report("x", [], 10.0 * MIB)
    advance(home, "abcd", {"a": 1, "b": 1, "c": 1, "d": 1}, 4, offsets)
    assert home.ask("b", offsets["b"]) == GoUpstream()
    told = advance(home, "abcd", {"a": 1, "b": 8, "c": 1, "d": 1}, 3, offsets)
    assert {"c", "d"} <= told
    assert home.feeder("c", offsets["c"]) == "b"


def test_a_root_that_gets_nothing_more_is_replaced_after_a_while() -> None:
    home, offsets = Home(), dict[str, int]()
    for host in "abc":
        home.ask(host)
    advance(home, "abc", {"a": 2, "b": 2, "c": 2}, 2, offsets)
    assert not advance(home, "abc", {"a": 0, "b": 0, "c": 0}, 13, offsets)
    assert advance(home, "abc", {"a": 0, "b": 0, "c": 0}, 5, offsets) == {"b"}
    assert home.ask("b", offsets["b"]) == GoUpstream()


def test_if_upstream_stops_for_a_while_no_further_host_goes_upstream() -> None:
    home, offsets = Home(), dict[str, int]()
    for host in "abc":
        home.ask(host)
    home.now += 0.1
    home.claims.report("x", [], 3.0 * MIB)
    assert not advance(home, "abc", {"a": 2, "b": 2, "c": 2}, 3, offsets)
    for _ in range(20):
        home.claims.report("x", [], 3.0 * MIB)
        assert not advance(home, "abc", {"a": 0, "b": 0, "c": 0}, 0.5, offsets)
    assert not advance(home, "abc", {"a": 2, "b": 2, "c": 2}, 3, offsets)


def test_if_upstream_gives_nothing_to_anyone_nobody_is_waited_for() -> None:
    home = Home()
    for host in "abc":
        home.ask(host)
        home.now += home.limits.claim_timeout + 1
        home.claims.expire()
    for host in "defg":
        assert home.ask(host) == GoUpstream()
    assert home.ask("a") == GoUpstream()


def test_then_those_that_wait_already_are_told_too() -> None:
    home = Home()
    for host in "abcdefg":
        home.ask(host)
    for root, child in ("ab", "bc", "cd"):
        home.now += home.limits.claim_timeout + 1
        assert home.report(child, 0, root) == [KEY], "it waits for nothing"
        home.ask(child)
    for host in "efg":
        assert home.report(host, 0) == [KEY]
        assert home.ask(host) == GoUpstream()


def test_a_home_that_was_restarted_learns_who_feeds_whom_from_reports() -> None:
    home = Home()
    home.report("c", 3 * MIB, "b")
    home.report("b", 4 * MIB, "a")
    home.has("c", 3 * MIB)
    home.has("a", 5 * MIB)
    home.has("b", 4 * MIB)
    assert home.feeder("d") == "c"
    assert home.ask("b", 4 * MIB, failed={"a": FailureReason.UNREACHABLE}) == GoUpstream(), "it feeds all others"


def test_the_dead_feeder_of_a_child_leaves_its_place_to_the_child() -> None:
    home, offsets = Home(), dict[str, int]()
    for host in "abcd":
        home.ask(host)
    advance(home, "abcd", {"a": 2, "b": 2, "c": 2, "d": 2}, 2, offsets)
    assert home.feeder("c", offsets["c"], failed={"b": FailureReason.UNREACHABLE}) == "a"
    assert home.feeder("e") == "d"


def test_if_the_root_dies_the_host_with_the_most_bytes_goes_on() -> None:
    home, offsets = Home(), dict[str, int]()
    for host in "abcd":
        home.ask(host)
    advance(home, "abcd", {"a": 2, "b": 2, "c": 2, "d": 2}, 2, offsets)
    assert home.ask("b", offsets["b"], failed={"a": FailureReason.UNREACHABLE}) == GoUpstream()
    assert home.feeder("c", offsets["c"]) == "b"


def test_a_host_that_asks_although_its_reports_say_it_has_everything_is_fed() -> None:
    home = Home()
    home.has("a", None)
    assert home.ask("a") == GoUpstream()
    assert home.feeder("b") == "a"


def test_more_hosts_report_less_often() -> None:
    home = Home()
    home.ask("root")
    _, few = home.claims.report("x", [], None)
    for number in range(500):
        home.claims.report(f"host{number}", [], None)
    _, many = home.claims.report("x", [], None)
    assert few < many <= 10


def test_a_host_that_has_got_something_from_upstream_lately_has_more_time_to_prove_itself() -> None:
    home = Home()
    home.ask("a", upstream_rate=1e6)
    home.feeder("b")
    home.now += home.limits.claim_timeout + 2
    home.claims.expire()
    assert home.report("b", 0, "a") == []
    home.now += 10
    home.claims.expire()
    assert home.report("b", 0, "a") == [KEY]


def test_a_host_that_follows_another_one_lets_it_ask_first() -> None:
    """If each host went upstream for some layers, a runtime that asks for all of them at once would fetch none."""
    home = Home()
    assert home.ask("b", follows=True) == WaitFor(0.25)
    assert home.ask("a") == GoUpstream()
    home.now += 0.25
    assert home.feeder("b", follows=True) == "a"


def test_a_host_that_follows_another_one_waits_longer_while_that_one_may_ask_for_more() -> None:
    """On a busy machine, it takes seconds to ask for all layers."""
    home = Home()
    for number in range(20):
        home.ask_at_once("a", key=f"{number}")
        assert home.ask("b", follows=True) == WaitFor(0.25)
        home.now += 0.25
    assert home.ask("b", follows=True) == GoUpstream()


def test_a_host_that_follows_another_one_does_not_wait_for_long() -> None:
    home = Home()
    for _ in range(8):
        assert home.ask("b", follows=True) == WaitFor(0.25)
        home.now += 0.25
    assert home.ask("b", follows=True) == GoUpstream()
    assert home.feeder("a", follows=True) == "b"


@pytest.mark.parametrize("has_left", [False, True])
def test_a_host_that_follows_another_one_does_not_wait_once_more_if_that_one_gets_nothing(has_left: bool) -> None:
    home = Home()
    home.ask("a")
    home.feeder("b", follows=True)
    if has_left:
        home.report("a", 0, end=LeaseEnd.GONE)
    else:
        home.now += home.limits.claim_timeout + 2
        home.claims.expire()
    assert home.report("b", 0, "a") == [KEY]
    assert home.ask("b", follows=True) == GoUpstream()


def test_a_root_whose_runtime_fetches_other_content_first_has_as_much_time_as_it_says() -> None:
    home = Home()
    home.ask("a", upstream_rate=1e6)
    home.feeder("b")
    for _ in range(10):
        home.now += 5
        home.report("a", 0, is_queued=True)
        assert home.report("b", 0, "a") == []
    home.has("a", MIB)
    home.now += 5
    home.report("a", 0, is_queued=True)  # an old one
    assert home.report("b", MIB, "a") == []
    home.now += 5
    assert home.feeder("c") == "b"


def test_a_home_that_was_restarted_learns_from_a_root_that_has_nothing_yet_that_it_is_one() -> None:
    home = Home()
    home.report("a", 0, is_queued=True)
    home.now += 1.0
    assert home.feeder("b") == "a"
    home.has("b", MIB)
    home.report("c", 0, is_queued=True)
    assert not home.claims.table.fetches()[0].hosts["c"].is_root, "one is enough"


def test_hosts_that_go_upstream_without_a_grant_are_not_too_many_roots() -> None:
    home = Home()
    for host in "abc":
        assert home.ask(host, is_fetching=True) == GoUpstream()
    assert home.feeder("child") == "a"
    home.ask("child", failed={"a": FailureReason.SILENT})
    home.ask("d", is_fetching=True)
    home.report("a", 0)  # it is there again
    [fetch] = home.claims.table.fetches()
    assert set(fetch.roots) == {*"bcd"}


def test_a_root_that_says_so_for_more_than_two_minutes_is_replaced() -> None:
    home = Home()
    home.ask("a", upstream_rate=1e6)
    home.feeder("b")
    begun = home.now
    while home.report("b", 0, "a") == [] and home.now < begun + 600:
        home.now += 1
        home.report("a", 0, is_queued=True)
    assert begun + 120 < home.now < begun + 150
    assert home.ask("b") == GoUpstream()


def test_a_root_that_does_not_say_so_any_more_is_replaced() -> None:
    home = Home()
    home.ask("a", upstream_rate=1e6)
    home.feeder("b")
    home.now += 5
    home.report("a", 0, is_queued=True)
    home.now += 11
    assert home.report("b", 0, "a") == [KEY]
    assert home.ask("b") == GoUpstream()
    assert home.ask("a", key="another") == GoUpstream(), "it gets other content"
    assert home.feeder("c", key="another") == "a"


def test_a_host_that_should_ask_again_may_keep_its_feeder() -> None:
    home = Home()
    for host in "ab":
        home.ask(host)
    home.has("a", 5 * MIB)
    home.report("b", MIB, "a", end=LeaseEnd.SUPERSEDED)
    assert home.feeder("b", MIB) == "a"


def test_the_uplinks_are_learnt_from_small_content_too() -> None:
    home = Home()

    def depth_of_the_next(key: str) -> int:
        assert home.ask("root", key=key, size=MIB) == GoUpstream()
        depths = {"root": 0}
        for number in range(12):
            depths[str(number)] = depths[home.feeder(str(number), key=key, size=MIB)] + 1
        return max(depths.values())

    assert depth_of_the_next("first") <= 4
    home.has("root", None, "second")
    home.feeder("x", key="second", size=MIB)
    home.now += 0.5  # 2 MiB per second
    home.report("x", MIB, "root", "second", end=LeaseEnd.DONE)
    assert depth_of_the_next("third") == 12


@pytest.mark.parametrize(("in_all", "depth"), [(1, 2), (5, 6)])
def test_uplinks_are_shared_only_as_far_as_all_that_the_root_gets_leaves_them_free(in_all: int, depth: int) -> None:
    """Else hosts that ask while another key takes most of the path to upstream would share uplinks for good."""
    home, offsets = Home(), dict[str, int]()
    home.has("holder", None, "before")
    home.feeder("x", key="before")
    home.now += 12.8  # 5 MiB per second
    home.report("x", 64 * MIB, "holder", "before", end=LeaseEnd.DONE)
    assert home.ask("a") == GoUpstream()
    home.feeder("b")
    advance(home, "ab", {"a": 1, "b": 1}, 2, offsets)
    home.claims.learn_upstream("a", in_all * MIB)
    depths = {"a": 0, "b": 1}
    for host in "cdefg":
        depths[host] = depths[home.feeder(host)] + 1
    assert max(depths.values()) == depth
