"""Which peers are excluded for which blob, and for how long."""

from __future__ import annotations

import pytest
from tests.support.clock import Clock

from peili.mirror import Digest, Limits
from peili.mirror.errors import FailureReason
from peili.mirror.relay.blame import Blame

ONE, OTHER = Digest.of(b"one"), Digest.of(b"other")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def blame(clock: Clock) -> Blame:
    return Blame(Limits(quarantine_ttl=600, failure_ttl=30, quarantine_entries=3), clock)


@pytest.mark.parametrize(
    ("reason", "ttl"),
    [
        (FailureReason.WRONG, 600),
        (FailureReason.BROKEN, 30),
        (FailureReason.SILENT, 30),
        (FailureReason.SLOW, 30),
        (FailureReason.UNREACHABLE, 0),
        (FailureReason.BUSY, 0),
        (FailureReason.REFUSED, 0),
    ],
)
def test_the_fault_decides_how_long_a_peer_is_excluded(blame: Blame, clock: Clock, reason: str, ttl: float) -> None:
    blame.record(ONE, "a", reason)
    assert blame.excluded(ONE) == ({"a": reason} if ttl else {})
    assert blame.excluded(OTHER) == {}
    clock.now += ttl - 1
    assert bool(blame.excluded(ONE)) is bool(ttl)
    clock.now += 1
    assert blame.excluded(ONE) == {}


def test_a_smaller_fault_does_not_end_a_quarantine(blame: Blame, clock: Clock) -> None:
    blame.record(ONE, "a", FailureReason.WRONG)
    clock.now += 10
    blame.record(ONE, "a", FailureReason.BROKEN)
    clock.now += 100
    assert blame.excluded(ONE) == {"a": FailureReason.WRONG}


def test_a_repeated_fault_excludes_for_longer(blame: Blame, clock: Clock) -> None:
    blame.record(ONE, "a", FailureReason.BROKEN)
    clock.now += 20
    blame.record(ONE, "a", FailureReason.SILENT)
    clock.now += 20
    assert blame.excluded(ONE) == {"a": FailureReason.SILENT}


def test_tables_are_bounded_and_the_oldest_entry_is_dropped(blame: Blame) -> None:
    for name in "abcd":
        blame.record(ONE, name, FailureReason.WRONG)
    assert list(blame.excluded(ONE)) == ["b", "c", "d"]
    digests = [Digest.of(name.encode()) for name in "abcd"]
    for digest in digests:
        blame.poison(digest)
    assert [blame.is_poisoned(digest) for digest in digests] == [False, True, True, True]


def test_a_runtime_that_fetches_in_vain_is_told_so_a_few_times(blame: Blame) -> None:
    assert blame.next_cut(ONE) is None
    blame.poison(ONE)
    assert blame.next_cut(ONE) is None, "it may have another copy"
    blame.fetch_in_vain(ONE, 1000)
    assert [blame.next_cut(ONE) for _ in range(6)] == [1000] * 5 + [None]
    blame.fetch_in_vain(ONE, 1000)
    blame.clear(ONE)
    assert blame.next_cut(ONE) is None


def test_a_blob_is_poisoned_until_the_runtime_starts_again_or_the_time_is_up(blame: Blame, clock: Clock) -> None:
    assert not blame.is_poisoned(ONE)
    blame.poison(ONE)
    assert blame.is_poisoned(ONE)
    assert not blame.is_poisoned(OTHER)
    blame.clear(ONE)
    blame.clear(OTHER)
    assert not blame.is_poisoned(ONE)
    blame.poison(ONE)
    clock.now += 600
    assert not blame.is_poisoned(ONE)


def test_senders_are_suspects_until_the_runtime_starts_again_or_the_time_is_up(blame: Blame, clock: Clock) -> None:
    blame.suspect(ONE, {"a"})
    blame.suspect(ONE, {"b"})
    blame.suspect(ONE, ())
    assert blame.suspects(ONE) == {"a", "b"}
    assert blame.suspects(OTHER) == set()
    blame.clear(ONE)
    assert blame.suspects(ONE) == set()
    blame.suspect(ONE, {"a"})
    clock.now += 300
    blame.suspect(ONE, {"b"})
    clock.now += 300
    assert blame.suspects(ONE) == {"b"}
    digests = [Digest.of(name.encode()) for name in "abcd"]
    for digest in digests:
        blame.suspect(digest, {"a"})
    assert [bool(blame.suspects(digest)) for digest in digests] == [False, True, True, True]


def test_a_doubted_peer_is_excluded_and_then_asked_last(blame: Blame, clock: Clock) -> None:
    blame.doubt(ONE, "a")
    assert blame.excluded(ONE) == {"a": FailureReason.WRONG}
    assert not blame.is_doubted(OTHER, "a")
    clock.now += 30
    assert blame.excluded(ONE) == {}
    assert blame.is_doubted(ONE, "a")
    clock.now += 570
    assert not blame.is_doubted(ONE, "a")


def test_a_doubt_does_not_end_a_quarantine_and_doubts_are_bounded(blame: Blame, clock: Clock) -> None:
    blame.record(ONE, "a", FailureReason.WRONG)
    blame.doubt(ONE, "a")
    clock.now += 100
    assert blame.excluded(ONE) == {"a": FailureReason.WRONG}
    for name in "bcde":
        blame.doubt(ONE, name)
    assert [blame.is_doubted(ONE, name) for name in "abcde"] == [False, False, True, True, True]
