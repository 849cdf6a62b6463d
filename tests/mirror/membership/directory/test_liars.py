"""What a member can do that lies to a home: it harms at most itself and the hosts that it reads from, or that read from
it."""

from __future__ import annotations

from itertools import pairwise

from tests.mirror.membership.directory.home import KEY, MIB, Home

from peili.mirror import FailureReason, LeaseEnd
from peili.mirror.peer_api.leases import FeedFrom, GoUpstream


def start_chain(home: Home, hosts: str) -> None:
    """Let each of `hosts` read from the one before it, and the first one from upstream."""
    assert home.ask(hosts[0]) == GoUpstream()
    for feeder, host in pairwise(hosts):
        assert home.feeder(host) == feeder
    home.has(hosts[0], 8 * MIB)


def test_nobody_can_complain_about_hosts_that_it_never_read_from() -> None:
    for reason in (FailureReason.WRONG, FailureReason.SILENT, FailureReason.STARVING, FailureReason.SLOW):
        home = Home()
        start_chain(home, "abcd")
        assert home.ask("x", failed=dict.fromkeys("abcd", reason)) == GoUpstream(), "they are not used for itself"
        assert home.feeder("e", failed={"x": FailureReason.BUSY}) == "d", reason


def test_who_accuses_one_feeder_after_another_of_wrong_bytes_is_no_longer_believed() -> None:
    home = Home()
    start_chain(home, "abcdefg")
    accused = dict[str, str]()
    while isinstance(grant := home.ask("x", failed=accused), FeedFrom):
        accused |= dict.fromkeys((each.id for each in grant.holders), FailureReason.WRONG)
        home.report("x", 0, end=LeaseEnd.GONE)  # the home does not forget its words with it
    assert len(accused) == len("abcdefg")
    fetch = home.claims.table.find(KEY)
    assert fetch is not None
    assert [each.host for each in fetch.hosts.values() if each.is_barred and each.host != "x"] == ["f", "g"]


def test_a_whole_holder_that_speaks_again_is_no_longer_called_silent() -> None:
    home = Home()
    home.has("w", None)
    assert home.feeder("a") == "w"
    assert home.ask("a", failed={"w": FailureReason.UNREACHABLE}) == GoUpstream()
    home.now += 1
    home.has("w", None)
    assert home.feeder("b") == "w"


def test_a_host_that_says_for_ever_that_it_fetches_other_content_first_is_not_waited_for_again() -> None:
    home = Home()
    home.report("liar", 0, is_queued=True)
    home.now += 1.0
    assert home.feeder("a") == "liar"
    for _ in range(300):
        home.now += 1
        home.claims.expire()
        home.report("liar", 0, is_queued=True)
    assert home.ask("b") == GoUpstream()
    for _ in range(400):
        home.now += 1
        home.claims.expire()
        home.report("b", 0)
    home.report("c", 0, is_queued=True)
    home.now += 1
    assert home.feeder("d") == "c", "that was long ago"


def test_one_host_does_not_fill_the_table_of_keys() -> None:
    home = Home(claim_keys=80)
    for number in range(1000):
        home.ask("liar", key=f"key {number}")
    assert home.ask("a") == GoUpstream()
    assert home.feeder("b") == "a"


def test_who_reads_from_a_host_that_only_says_that_it_receives_moves_to_another_one() -> None:
    """The liar may tell its child that it waits. Without this, all hosts behind it would wait as long as they may."""
    home = Home()
    start_chain(home, "abcd")
    offset, told = 0, list[str]()
    while not told and offset < 40 * MIB:
        home.now += 0.5
        offset += MIB
        home.has("a", offset)
        home.claims.expire()
        home.report("b", offset, "a")
        home.report("d", 0, "c")
        told = home.report("c", 0, "b")
    assert told, "the root is half done"
    assert home.feeder("c") == "a"
    assert not home.report("d", 0, "c")


def test_a_root_from_which_nobody_gets_anything_is_replaced() -> None:
    home = Home()
    start_chain(home, "ab")
    offset, told = 0, list[str]()
    while not told and offset < 40 * MIB:
        home.now += 0.5
        offset += MIB
        home.has("a", offset)
        home.claims.expire()
        told = home.report("b", 0, "a")
    assert told
    assert home.ask("b") == GoUpstream()
    assert home.feeder("c") == "b"


def test_who_gets_nothing_because_its_feeder_has_nothing_stays() -> None:
    home = Home()
    start_chain(home, "abc")
    for _ in range(20):
        home.now += 0.5
        home.has("a", 8 * MIB)
        home.claims.expire()
        assert not home.report("b", 8 * MIB, "a")
        assert not home.report("c", 8 * MIB, "b")


def test_who_resumes_has_time_to_read_back_what_it_has() -> None:
    home = Home()
    start_chain(home, "a")
    assert home.feeder("b", 4 * MIB) == "a"
    offset, seconds = 8 * MIB, 0.0
    while not home.report("b", 4 * MIB, "a"):
        home.now, seconds = home.now + 1, seconds + 1
        assert seconds < 60
        offset += MIB
        home.has("a", offset)
        home.claims.expire()
    assert seconds >= 20
