"""What a home measures of links."""

from __future__ import annotations

import pytest

from peili.mirror.membership.directory.link_rates import LinkRates


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
