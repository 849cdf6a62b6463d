"""What a home measures of links."""

from __future__ import annotations

from collections import Counter

import pytest

from peili.mirror.membership.directory.fetcher import Fetcher
from peili.mirror.membership.directory.fetches import Fetch
from peili.mirror.membership.directory.link_rates import LinkRates
from peili.mirror.membership.directory.slow_hosts import judge_link


def test_a_hop_is_near_the_shortest_delay_because_the_rest_is_the_wait_for_a_shared_link() -> None:
    rates = LinkRates()
    assert rates.links(None, 0).hop == pytest.approx(0.02)
    for delay in [0.9, 0.1, 0.8, 0.7] * 50:
        rates.learn_hop(delay)
    assert 0.1 < rates.links(None, 0).hop < 0.25


def test_a_hop_becomes_longer_if_all_delays_do() -> None:
    rates = LinkRates()
    for _ in range(100):
        rates.learn_hop(0.5)
    assert 0.4 < rates.links(None, 0).hop <= 0.5


def test_an_uplink_is_not_taken_for_faster_because_reports_came_late() -> None:
    rates, fetch = LinkRates(), Fetch("sha256:1", 4, Counter[str]())
    root, child = (Fetcher(name, "", since=0, heard=0, grew=0, can_share=True) for name in ("root", "child"))
    for each in (root, child):
        fetch.add(each)
    fetch.feed(child, ("root",), 0)
    for fetcher in (root, child):
        for offset, now in [(1_000_000, 1.0), (5_000_000, 4.6), (6_000_000, 5.0)]:  # the second one is 0.6 s late
            fetcher.measure(offset, now)
            fetcher.grow(offset, now)
    assert child.rate is not None
    assert child.rate > 1_500_000
    assert judge_link(fetch, child, root.offset, rates, 5.0) is None
    assert rates.links(None, 5.0).uplink == pytest.approx(1_200_000)


def test_hosts_that_were_slow_long_ago_do_not_keep_others_from_being_called_slow() -> None:
    rates = LinkRates()
    for gone in ("one", "another"):
        rates.mark_slow(gone, 0.0)
    rates.mark_slow("third", 1.0)
    assert not rates.is_slow("third", 1.0), "too many are slow at once"
    rates.mark_slow("third", 1000.0)
    assert rates.is_slow("third", 1000.0)
