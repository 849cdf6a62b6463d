"""How fast this host receives from upstream."""

from __future__ import annotations

from tests.support.clock import Clock

from peili.mirror.limits import MIB
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


def test_the_rate_of_several_fetches_is_what_they_get_together() -> None:
    """Three layers at once share one path. One layer of another host must not look three times as fast."""
    clock = Clock(0.0)
    fetches = UpstreamFetches(clock)
    for key in ("a", "b", "c"):
        fetches.begin(key)
        fetches.grow(key, 0)
    for clock.now in (1, 2, 3):
        for key in ("a", "b", "c"):
            fetches.grow(key, int(clock.now) * MIB)
    assert fetches.best_rate() == 3 * MIB


def test_what_arrived_before_the_fetch_and_the_time_without_a_fetch_do_not_count() -> None:
    clock = Clock(0.0)
    fetches = UpstreamFetches(clock)
    fetches.begin("resumed")
    fetches.grow("resumed", 500 * MIB)
    clock.now = 1
    fetches.grow("resumed", 501 * MIB)
    assert fetches.best_rate() == MIB
    fetches.end("resumed")
    clock.now = 100
    fetches.begin("next")
    fetches.grow("next", 0)
    clock.now = 101
    fetches.grow("next", MIB)
    assert fetches.best_rate() == MIB


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


def test_fetches_that_the_runtime_has_not_begun_may_follow_while_it_receives_something() -> None:
    clock = Clock(0.0)
    fetches = UpstreamFetches(clock)
    for key in ("first", "second"):
        fetches.begin(key, home="h", can_share=True)
    fetches.begin("of another home", home="i", can_share=True)
    fetches.begin("hidden", home="h")
    assert not fetches.is_busy
    fetches.grow("first", 1)
    assert fetches.is_busy
    assert [each.key for each in fetches.unstarted("h")] == ["second"]
    clock.now = 4
    fetches.complete("first", 200)
    clock.now = 8
    assert fetches.is_busy
    clock.now = 10
    assert not fetches.is_busy
    fetches.note_bytes()
    assert fetches.is_busy, "it reads something from another host first"
    clock.now = 121
    fetches.expire()
    assert not fetches.unstarted("h")


def grown(clock: Clock, fetches: UpstreamFetches, seconds: float, **available: int) -> None:
    """Let time pass, and some keys grow to so many bytes."""
    clock.now += seconds
    for key, count in available.items():
        fetches.grow(key, count, 100 * MIB if key == "large" else 16 * MIB)


def test_of_the_slow_keys_the_one_with_the_smallest_rest_is_doubted_and_no_other_one_for_minutes() -> None:
    clock = Clock(0.0)
    fetches = UpstreamFetches(clock)
    for key in ("large", "a", "b"):
        fetches.begin(key, can_share=True)
        fetches.grow(key, 0)
    grown(clock, fetches, 7, large=MIB, a=2 * MIB, b=3 * MIB)
    assert fetches.doubted() is None, "it is too early"
    grown(clock, fetches, 1, large=MIB, a=2 * MIB, b=3 * MIB)
    assert fetches.doubted() == "b"
    grown(clock, fetches, 1, a=9 * MIB)
    assert fetches.doubted() == "b"
    fetches.complete("b", 16 * MIB)
    grown(clock, fetches, 60, large=2 * MIB, a=10 * MIB)
    assert fetches.doubted() is None
    grown(clock, fetches, 240, large=3 * MIB)
    assert fetches.doubted() == "a"


def test_the_time_before_the_runtime_has_begun_does_not_count_against_the_path_to_upstream() -> None:
    """containerd 2.1 and later ask for all layers at once, and fetch three at a time."""
    clock = Clock(0.0)
    fetches = UpstreamFetches(clock)
    for key in ("large", "a"):
        fetches.begin(key, can_share=True)
    fetches.grow("large", 0)
    grown(clock, fetches, 60, large=90 * MIB)
    for step in range(1, 12):
        grown(clock, fetches, 1, a=step * MIB)
        assert fetches.doubted() is None
    fetches.complete("a", 16 * MIB)
    assert fetches.best_rate() == 15 * MIB / 10


def test_first_bytes_that_are_seen_late_do_not_make_upstream_look_fast() -> None:
    """Others compare their rates with it, and a root that looks slow is helped by another one, which costs a copy."""
    clock = Clock(0.0)
    fetches = UpstreamFetches(clock)
    fetches.begin("seen late")
    clock.now = 10
    fetches.grow("seen late", MIB)
    clock.now = 10.001
    fetches.complete("seen late", 3 * MIB)
    assert fetches.best_rate() == 2 * MIB


def test_a_key_that_is_nearly_all_is_doubted_only_if_its_rest_takes_very_long() -> None:
    clock = Clock(0.0)
    fetches = UpstreamFetches(clock)
    fetches.begin("large", can_share=True)
    fetches.grow("large", 0)
    grown(clock, fetches, 59, large=10 * MIB)
    assert fetches.doubted() is None
    grown(clock, fetches, 1, large=10 * MIB)
    assert fetches.doubted() == "large"


def test_what_is_fast_gets_nothing_or_can_not_be_shared_is_not_doubted() -> None:
    clock = Clock(0.0)
    fetches = UpstreamFetches(clock)
    for key in ("fast", "nothing", "hidden"):
        fetches.begin(key, can_share=key != "hidden")
        fetches.grow(key, 0)
    grown(clock, fetches, 100, fast=8 * MIB, nothing=0, hidden=MIB)
    fetches.complete("fast", 16 * MIB)
    assert fetches.doubted() is None


def test_nothing_more_is_expected_of_fetches_that_do_not_grow_any_more() -> None:
    """The next home would let hosts wait for them once more."""
    clock = Clock(0.0)
    fetches = UpstreamFetches(clock)
    fetches.begin("private", can_share=False)
    fetches.begin("given up", can_share=True)
    fetches.begin("growing", can_share=True)
    clock.now = 14
    fetches.grow("growing", 1000, None)
    assert [each.key for each in fetches.arriving()] == ["given up", "growing"]
    clock.now = 16
    assert [each.key for each in fetches.arriving()] == ["growing"]


def test_of_content_for_which_the_runtime_is_sent_upstream_again_all_is_expected_again() -> None:
    clock = Clock(0.0)
    fetches = UpstreamFetches(clock)
    for key in ("nothing came", "broke off"):
        fetches.begin(key, home="h", size=100 * MIB, can_share=True)
    fetches.grow("broke off", 0)
    clock.now = 1
    fetches.grow("broke off", MIB)
    clock.now = 110
    for key in ("nothing came", "broke off"):
        fetches.begin(key, home="h", can_share=True)
    clock.now = 121
    fetches.expire()
    assert [each.key for each in fetches.arriving()] == ["nothing came", "broke off"]
    fetches.grow("broke off", MIB)
    clock.now = 122
    fetches.grow("broke off", 21 * MIB)
    clock.now = 130
    fetches.grow("broke off", 40 * MIB)
    assert fetches.doubted() is None, "the time in which nobody fetched it does not count"


def test_content_that_turns_out_to_be_smaller_than_what_had_arrived_shows_no_negative_rate() -> None:
    clock = Clock(0.0)
    fetches = UpstreamFetches(clock)
    fetches.begin("k")
    fetches.grow("k", 9 * MIB)
    clock.now = 0.5
    fetches.complete("k", 2 * MIB)
    assert fetches.best_rate() == 0


def test_the_search_for_a_doubted_key_does_not_look_at_all_fetches_once_for_each_of_them() -> None:
    """It precedes each message to a home. With 1,024 fetches it took 95 ms."""
    looks: list[str] = []

    class Size(int):
        def __radd__(self, other: int) -> int:
            looks.append("at a size")
            return int(self) + other

    fetches = UpstreamFetches(Clock(0.0))
    for number in range(100):
        fetches.begin(str(number), size=Size(1000), can_share=True)
    assert fetches.doubted() is None
    assert 0 < len(looks) <= 2 * 100
