"""How failures, successes and rates decide when a peer is asked next."""

from __future__ import annotations

import pytest
from tests.support.clock import Clock

from peili.mirror import Limits
from peili.mirror.errors import FailureReason
from peili.mirror.limits import MIB
from peili.mirror.relay.scores import HEALTHY, RESTING, UNPROVEN, HolderScores


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scores(clock: Clock) -> HolderScores:
    return HolderScores(Limits(failure_ttl=10, rest_max=30, hedge_delay=0.25, slow_rate=8 * MIB), clock)


def test_the_rest_grows_with_each_failure(scores: HolderScores, clock: Clock) -> None:
    for pause in (10, 20, 30, 30):
        scores.record_failure("a", FailureReason.SILENT)
        scores.record_failure("a", FailureReason.BROKEN)  # the same incident
        clock.now += pause - 0.1
        assert scores.rank("a") == RESTING
        clock.now += 0.2
        assert scores.rank("a") == HEALTHY


@pytest.mark.parametrize("reason", [FailureReason.REFUSED, FailureReason.BUSY])
def test_a_peer_that_refuses_or_is_busy_rests_briefly_and_others_stay_healthy(
    scores: HolderScores, clock: Clock, reason: str
) -> None:
    scores.record_success("good", clock.now)
    scores.record_failure("a", reason)
    assert (scores.rank("a"), scores.rank("b")) == (RESTING, HEALTHY)
    clock.now += 2.1
    assert scores.rank("a") == HEALTHY


def test_a_peer_that_hesitated_rests_briefly(scores: HolderScores, clock: Clock) -> None:
    scores.record_hesitation("a")
    assert scores.rank("a") == RESTING
    clock.now += 2.1
    assert scores.rank("a") == HEALTHY


def test_a_success_ends_the_rest_unless_it_started_before_the_failure(scores: HolderScores, clock: Clock) -> None:
    began = clock.now
    clock.now += 1
    scores.record_failure("a", FailureReason.SILENT)
    clock.now += 1
    scores.record_success("a", began)
    assert scores.rank("a") == RESTING
    scores.record_success("a", clock.now)
    assert scores.rank("a") == HEALTHY
    scores.record_failure("a", FailureReason.SILENT)
    clock.now += 10.1  # as after the first failure
    assert scores.rank("a") == HEALTHY


def test_proven_peers_come_first_after_a_failure(scores: HolderScores, clock: Clock) -> None:
    scores.record_failure("a", FailureReason.SILENT)
    assert scores.rank("b") == HEALTHY  # no peer is proven
    scores.record_success("c", clock.now)
    assert (scores.rank("a"), scores.rank("b"), scores.rank("c")) == (RESTING, UNPROVEN, HEALTHY)
    clock.now += 10.1
    assert [scores.rank(name) for name in "abc"] == [HEALTHY] * 3


def test_a_success_does_not_prove_a_slow_peer(scores: HolderScores, clock: Clock) -> None:
    scores.record_rate("slow", MIB, 10)
    scores.record_success("slow", clock.now)
    scores.record_failure("a", FailureReason.SLOW)
    assert not scores.is_slow("slow")  # no other rate is known
    scores.record_rate("fast", MIB, 0.1)
    scores.record_success("fast", clock.now)
    scores.record_success("slow again", clock.now)
    assert scores.is_slow("slow")
    scores.record_failure("slow", FailureReason.SLOW)
    clock.now += 10.1
    scores.record_failure("a", FailureReason.SILENT)
    scores.record_success("slow", clock.now)
    assert (scores.rank("slow"), scores.rank("fast")) == (UNPROVEN, HEALTHY)


def test_the_hedge_delay_shrinks_with_failures_except_for_proven_peers(scores: HolderScores, clock: Clock) -> None:
    scores.record_success("good", clock.now)
    assert scores.hedge_delay() == 0.25
    for number in range(9):
        scores.record_failure(f"a{number}", FailureReason.SILENT)
    assert scores.hedge_delay("b") == 0.25 / 4
    assert scores.hedge_delay("good") == 0.25
    clock.now += 10.1
    assert scores.hedge_delay("b") == 0.25


def test_a_rate_follows_the_samples_and_ignores_small_ones(scores: HolderScores) -> None:
    scores.record_rate("a", 500, 0.02)
    assert scores.rate("a") is None
    scores.record_rate("a", 90_000, 1)
    assert scores.rate("a") == 90_000
    scores.record_rate("a", 10 * MIB, 1)
    assert 90_000 < (scores.rate("a") or 0) < 10 * MIB
    scores.record_rate("b", 1, 1)
    assert scores.rate("b") == 1


def test_scores_are_bounded_and_peers_without_news_are_forgotten(scores: HolderScores, clock: Clock) -> None:
    for number in range(5000):
        scores.record_failure(f"a{number}", FailureReason.SILENT)
    assert len(scores) == 4096
    assert scores.rank("a0") == HEALTHY
    assert scores.rank("a4999") == RESTING
    clock.now += 601
    scores.record_success("b", clock.now)
    assert len(scores) == 1
