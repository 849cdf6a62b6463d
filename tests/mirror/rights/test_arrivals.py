"""To whom content belongs that arrives: the requests before its first byte decide."""

from __future__ import annotations

import pytest
from tests.support.clock import Clock

from peili.mirror import Digest
from peili.mirror.rights.arrivals import Arrivals

DIGEST, OTHER, THIRD = (Digest.of(bytes([number])) for number in range(3))


def arrivals(clock: Clock, most: int = 100) -> Arrivals:
    made = Arrivals(most, clock)
    made.follow(is_followed=True)
    return made


@pytest.mark.parametrize(
    ("requests", "is_open"),
    [([], False), ([False], True), ([True], False), ([False, True], False), ([True, False], False)],
)
@pytest.mark.parametrize("is_whole", [False, True])
def test_content_is_open_if_it_was_requested_only_for_open_repositories(
    requests: list[bool], is_open: bool, is_whole: bool
) -> None:
    known = arrivals(Clock())
    for is_covered in requests:
        known.note_request(DIGEST, is_covered=is_covered)
    assert known.is_open(DIGEST) is is_open
    known.note_arrival(DIGEST, is_whole=is_whole)
    assert known.is_open(DIGEST) is is_open


def test_a_later_request_changes_nothing() -> None:
    known = arrivals(Clock())
    known.note_request(DIGEST, is_covered=False)
    for digest in (DIGEST, OTHER):
        known.note_arrival(digest, is_whole=False)
    known.note_request(DIGEST, is_covered=True)
    known.note_request(OTHER, is_covered=False)
    assert known.is_open(DIGEST)
    assert not known.is_open(OTHER)


def test_a_request_explains_only_what_arrives_soon() -> None:
    clock = Clock()
    known = arrivals(clock)
    known.note_request(DIGEST, is_covered=False)
    known.note_request(OTHER, is_covered=False)
    known.note_arrival(OTHER, is_whole=False)
    clock.now += 61
    known.note_arrival(DIGEST, is_whole=True)
    assert not known.is_open(DIGEST)
    assert known.is_open(OTHER)  # it goes on to arrive
    known.forget({OTHER})
    assert not known.is_open(OTHER)


def test_what_was_here_before_is_not_explained_by_a_request() -> None:
    known = Arrivals(100, Clock())
    known.note_request(DIGEST, is_covered=False)
    known.note_arrival(DIGEST, is_whole=False)
    known.follow(is_followed=True)
    known.note_request(DIGEST, is_covered=False)
    assert not known.is_open(DIGEST)
    known.note_request(OTHER, is_covered=False)
    known.follow(is_followed=False)
    assert not known.is_open(OTHER)


@pytest.mark.parametrize("is_arriving", [False, True])
def test_if_too_much_is_to_be_remembered_everything_is_closed(is_arriving: bool) -> None:
    clock = Clock()
    known = arrivals(clock, 2)
    for digest in (DIGEST, OTHER):
        if is_arriving:
            known.note_arrival(digest, is_whole=False)
        else:
            known.note_request(digest, is_covered=True, is_granted=True)
    known.note_request(THIRD, is_covered=True)
    known.note_request(THIRD, is_covered=False)
    assert not known.is_open(THIRD)
    clock.now += 7 * 3600
    known.forget({DIGEST, OTHER})
    known.note_request(THIRD, is_covered=False)
    assert known.is_open(THIRD)


def test_a_request_that_was_not_granted_closes_content_only_for_a_short_time() -> None:
    """Anybody can write it."""
    clock = Clock()
    known = arrivals(clock)
    known.note_request(DIGEST, is_covered=True)
    clock.now += 119
    known.note_request(DIGEST, is_covered=False)
    assert not known.is_open(DIGEST)
    clock.now += 62
    known.note_request(DIGEST, is_covered=False)
    assert known.is_open(DIGEST)
    known.note_request(DIGEST, is_covered=True, is_granted=True)
    clock.now += 181
    known.note_request(DIGEST, is_covered=False)
    assert not known.is_open(DIGEST)


def test_requests_for_any_number_of_digests_close_only_these() -> None:
    known = arrivals(Clock())
    asked = [Digest.of(number.to_bytes(4)) for number in range(20_000)]
    for digest in asked:
        known.note_request(digest, is_covered=True)
    known.note_request(DIGEST, is_covered=False)
    assert known.is_open(DIGEST)
    for digest in (asked[0], asked[-1]):
        known.note_request(digest, is_covered=False)
        assert not known.is_open(digest)


def test_what_is_relayed_stays_open_as_long_as_it_takes_and_until_it_is_in_the_store() -> None:
    clock = Clock()
    known = arrivals(clock)
    known.note_request(DIGEST, is_covered=False)
    with known.relaying(DIGEST):
        for seconds in (30, 3600):
            clock.now += seconds
            with known.relaying(DIGEST), known.relaying(OTHER):
                assert known.is_open(DIGEST)
                assert not known.is_open(OTHER)
    assert known.is_open(DIGEST)
    clock.now += 61
    assert not known.is_open(DIGEST)


def test_what_is_relayed_for_others_is_not_open() -> None:
    clock = Clock()
    known = arrivals(clock)
    known.note_request(DIGEST, is_covered=True, is_granted=True)
    with known.relaying(DIGEST):
        assert not known.is_open(DIGEST)
    known.note_request(OTHER, is_covered=False)
    with known.relaying(OTHER):
        known.note_request(OTHER, is_covered=True, is_granted=True)
        assert known.is_open(OTHER)  # a peer has sent it to everybody
    assert not known.is_open(OTHER)
