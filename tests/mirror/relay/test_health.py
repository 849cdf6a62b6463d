"""What is known of a peer: how failures, successes and rates change when it is asked next."""

from __future__ import annotations

import pytest

from peili.mirror import Limits
from peili.mirror.errors import FailureReason
from peili.mirror.limits import MIB
from peili.mirror.relay.reputation import HEALTHY, RESTING, UNPROVEN, HolderScores


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> HolderScores:
    return HolderScores(Limits(failure_ttl=10, rest_max=30, hedge_delay=0.25, slow_rate=8 * MIB), clock)


def test_who_keeps_failing_rests_for_longer_and_longer(health: HolderScores, clock: Clock) -> None:
    for pause in (10, 20, 30, 30):
        health.record_failure("a", FailureReason.SILENT)
        health.record_failure("a", FailureReason.BROKEN)  # of the same moment
        clock.now += pause - 0.1
        assert health.rank("a") == RESTING
        clock.now += 0.2
        assert health.rank("a") == HEALTHY


@pytest.mark.parametrize("reason", [FailureReason.REFUSED, FailureReason.BUSY])
def test_who_refuses_or_is_busy_rests_for_a_moment_and_nobody_else_is_doubted(
    health: HolderScores, clock: Clock, reason: str
) -> None:
    health.record_success("good", clock.now)
    health.record_failure("a", reason)
    assert (health.rank("a"), health.rank("b")) == (RESTING, HEALTHY)
    clock.now += 2.1
    assert health.rank("a") == HEALTHY


def test_who_hesitated_rests_for_a_moment(health: HolderScores, clock: Clock) -> None:
    health.record_hesitation("a")
    assert health.rank("a") == RESTING
    clock.now += 2.1
    assert health.rank("a") == HEALTHY


def test_a_success_ends_the_rest_unless_it_began_before_the_failure(health: HolderScores, clock: Clock) -> None:
    began = clock.now
    clock.now += 1
    health.record_failure("a", FailureReason.SILENT)
    clock.now += 1
    health.record_success("a", began)
    assert health.rank("a") == RESTING
    health.record_success("a", clock.now)
    assert health.rank("a") == HEALTHY
    health.record_failure("a", FailureReason.SILENT)
    clock.now += 10.1  # as after the first failure
    assert health.rank("a") == HEALTHY


def test_soon_after_a_failure_those_come_first_that_have_succeeded(health: HolderScores, clock: Clock) -> None:
    health.record_failure("a", FailureReason.SILENT)
    assert health.rank("b") == HEALTHY  # nobody has succeeded
    health.record_success("c", clock.now)
    assert (health.rank("a"), health.rank("b"), health.rank("c")) == (RESTING, UNPROVEN, HEALTHY)
    clock.now += 10.1
    assert [health.rank(name) for name in "abc"] == [HEALTHY] * 3


def test_who_is_slow_is_not_proven_by_succeeding(health: HolderScores, clock: Clock) -> None:
    health.record_rate("slow", MIB, 10)
    health.record_success("slow", clock.now)
    health.record_failure("a", FailureReason.SLOW)
    assert not health.is_slow("slow")  # for all that is known
    health.record_rate("fast", MIB, 0.1)
    health.record_success("fast", clock.now)
    health.record_success("slow again", clock.now)
    assert health.is_slow("slow")
    health.record_failure("slow", FailureReason.SLOW)
    clock.now += 10.1
    health.record_failure("a", FailureReason.SILENT)
    health.record_success("slow", clock.now)
    assert (health.rank("slow"), health.rank("fast")) == (UNPROVEN, HEALTHY)


def test_patience_shrinks_with_failures_but_not_with_proven_ones(health: HolderScores, clock: Clock) -> None:
    health.record_success("good", clock.now)
    assert health.hedge_delay() == 0.25
    for number in range(9):
        health.record_failure(f"a{number}", FailureReason.SILENT)
    assert health.hedge_delay("b") == 0.25 / 4
    assert health.hedge_delay("good") == 0.25
    clock.now += 10.1
    assert health.hedge_delay("b") == 0.25


def test_a_rate_follows_what_is_measured_and_ignores_what_is_too_little(health: HolderScores) -> None:
    health.record_rate("a", 500, 0.02)
    assert health.rate("a") is None
    health.record_rate("a", 90_000, 1)
    assert health.rate("a") == 90_000
    health.record_rate("a", 10 * MIB, 1)
    assert 90_000 < (health.rate("a") or 0) < 10 * MIB
    health.record_rate("b", 1, 1)
    assert health.rate("b") == 1


def test_records_are_bounded_and_those_of_peers_that_left_are_dropped(health: HolderScores, clock: Clock) -> None:
    for number in range(5000):
        health.record_failure(f"a{number}", FailureReason.SILENT)
    assert len(health) == 4096
    assert health.rank("a0") == HEALTHY
    assert health.rank("a4999") == RESTING
    clock.now += 601
    health.record_success("b", clock.now)
    assert len(health) == 1
