"""What is known of a peer: how failures, successes and rates change when it is asked next."""

from __future__ import annotations

import pytest

from peili.mirror import Limits
from peili.mirror.errors import FailureReason
from peili.mirror.limits import MIB
from peili.mirror.relay.health import RESTS, UNPROVEN, WELL, Health


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(Limits(failure_ttl=10, rest_max=30, hedge_delay=0.25, slow_rate=8 * MIB), clock)


def test_who_keeps_failing_rests_for_longer_and_longer(health: Health, clock: Clock) -> None:
    for pause in (10, 20, 30, 30):
        health.failed("a", FailureReason.SILENT)
        health.failed("a", FailureReason.BROKEN)  # of the same moment
        clock.now += pause - 0.1
        assert health.rank("a") == RESTS
        clock.now += 0.2
        assert health.rank("a") == WELL


@pytest.mark.parametrize("reason", [FailureReason.REFUSED, FailureReason.BUSY])
def test_who_refuses_or_is_busy_rests_for_a_moment_and_nobody_else_is_doubted(
    health: Health, clock: Clock, reason: str
) -> None:
    health.succeeded("good", clock.now)
    health.failed("a", reason)
    assert (health.rank("a"), health.rank("b")) == (RESTS, WELL)
    clock.now += 2.1
    assert health.rank("a") == WELL


def test_who_hesitated_rests_for_a_moment(health: Health, clock: Clock) -> None:
    health.hesitated("a")
    assert health.rank("a") == RESTS
    clock.now += 2.1
    assert health.rank("a") == WELL


def test_a_success_ends_the_rest_unless_it_began_before_the_failure(health: Health, clock: Clock) -> None:
    began = clock.now
    clock.now += 1
    health.failed("a", FailureReason.SILENT)
    clock.now += 1
    health.succeeded("a", began)
    assert health.rank("a") == RESTS
    health.succeeded("a", clock.now)
    assert health.rank("a") == WELL
    health.failed("a", FailureReason.SILENT)
    clock.now += 10.1  # as after the first failure
    assert health.rank("a") == WELL


def test_soon_after_a_failure_those_come_first_that_have_succeeded(health: Health, clock: Clock) -> None:
    health.failed("a", FailureReason.SILENT)
    assert health.rank("b") == WELL  # nobody has succeeded
    health.succeeded("c", clock.now)
    assert (health.rank("a"), health.rank("b"), health.rank("c")) == (RESTS, UNPROVEN, WELL)
    clock.now += 10.1
    assert [health.rank(name) for name in "abc"] == [WELL] * 3


def test_who_is_slow_is_not_proven_by_succeeding(health: Health, clock: Clock) -> None:
    health.measured("slow", MIB, 10)
    health.succeeded("slow", clock.now)
    health.failed("a", FailureReason.SLOW)
    assert not health.is_slow("slow")  # for all that is known
    health.measured("fast", MIB, 0.1)
    health.succeeded("fast", clock.now)
    health.succeeded("slow again", clock.now)
    assert health.is_slow("slow")
    health.failed("slow", FailureReason.SLOW)
    clock.now += 10.1
    health.failed("a", FailureReason.SILENT)
    health.succeeded("slow", clock.now)
    assert (health.rank("slow"), health.rank("fast")) == (UNPROVEN, WELL)


def test_patience_shrinks_with_failures_but_not_with_proven_ones(health: Health, clock: Clock) -> None:
    health.succeeded("good", clock.now)
    assert health.patience() == 0.25
    for number in range(9):
        health.failed(f"a{number}", FailureReason.SILENT)
    assert health.patience("b") == 0.25 / 4
    assert health.patience("good") == 0.25
    clock.now += 10.1
    assert health.patience("b") == 0.25


def test_a_rate_follows_what_is_measured_and_ignores_what_is_too_little(health: Health) -> None:
    health.measured("a", 500, 0.02)
    assert health.rate("a") is None
    health.measured("a", 90_000, 1)
    assert health.rate("a") == 90_000
    health.measured("a", 10 * MIB, 1)
    assert 90_000 < (health.rate("a") or 0) < 10 * MIB
    health.measured("b", 1, 1)
    assert health.rate("b") == 1


def test_records_are_bounded_and_those_of_peers_that_left_are_dropped(health: Health, clock: Clock) -> None:
    for number in range(5000):
        health.failed(f"a{number}", FailureReason.SILENT)
    assert len(health) == 4096
    assert health.rank("a0") == WELL
    assert health.rank("a4999") == RESTS
    clock.now += 601
    health.succeeded("b", clock.now)
    assert len(health) == 1
