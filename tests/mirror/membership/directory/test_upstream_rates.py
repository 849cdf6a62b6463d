"""How fast this host receives from upstream."""

from __future__ import annotations

from tests.support.clock import Clock

from peili.mirror.membership.directory.upstream_rates import UpstreamFetches


def test_the_best_recent_rate_counts() -> None:
    clock = Clock(0.0)
    fetches = UpstreamFetches(clock)
    fetches.begin("k")
    fetches.grow("other", 10_000)
    for clock.now, available in ((0, 1000), (0.5, 2000), (1, 4000), (2, 5000)):
        fetches.grow("k", available)
    assert fetches.best_rate() == 3000
    clock.now = 6.5
    assert fetches.best_rate() == 1000
    clock.now = 7.5
    assert fetches.best_rate() is None


def test_content_shows_a_rate_when_it_is_complete_unless_it_is_small() -> None:
    clock = Clock(0.0)
    fetches = UpstreamFetches(clock)
    fetches.begin("small")
    fetches.begin("large")
    clock.now = 0.5
    fetches.complete("small", 100)
    fetches.complete("other", 10_000_000)
    assert fetches.best_rate() == 0, "it was served, but that shows no rate"
    fetches.complete("large", 2_000_000)
    assert fetches.best_rate() == 4_000_000
    assert "small" not in fetches


def test_fetches_that_do_not_grow_and_the_oldest_of_too_many_are_forgotten() -> None:
    clock = Clock(0.0)
    fetches = UpstreamFetches(clock)
    fetches.begin("idle")
    fetches.begin("growing")
    for clock.now in (100, 200):
        fetches.grow("growing", int(clock.now))
        fetches.expire()
    assert "idle" not in fetches
    assert "growing" in fetches
    for number in range(1024):
        fetches.begin(str(number))
    assert "growing" not in fetches
    assert len(fetches) == 1024
