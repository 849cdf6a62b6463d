"""Parsing the Range and Content-Range headers."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peili.mirror.oci.ranges import (
    MAX_RANGES,
    ByteRange,
    Span,
    Unsatisfiable,
    parse_content_range,
    parse_ranges,
    parse_unsatisfied_range,
)


def parse_range(header: str | None) -> ByteRange | None:
    """Return the range of a header that has exactly one."""
    ranges = parse_ranges(header)
    return ranges[0] if len(ranges) == 1 else None


SIZES = st.integers(0, 10**19)
POSITIONS = st.integers(0, 10**19 - 1)
ALMOST_RANGES = st.text("bytes=0123456789-,*/ \t\n٣", max_size=60)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-9", ByteRange(0, 9)),
        ("bytes=5-", ByteRange(5, None)),
        ("bytes=-5", ByteRange(None, 5)),
        ("Bytes= 0-9 ", ByteRange(0, 9)),
        ("bytes=9-0", None),
        ("bytes=-", None),
        ("bytes=", None),
        ("bytes=0-1,3-4", None),
        ("bytes=0-1,", None),
        ("items=0-1", None),
        ("bytes=a-b", None),
        ("bytes=+1-2", None),
        ("bytes=" + "9" * 5000 + "-", None),
        ("", None),
        (None, None),
    ],
)
def test_one_range_is_parsed_and_anything_else_ignored(header: str | None, expected: ByteRange | None) -> None:
    assert parse_range(header) == expected


@given(st.one_of(st.text(), ALMOST_RANGES, ALMOST_RANGES.map(lambda text: f"bytes={text}")))
def test_random_text_is_ignored_or_round_trips(header: str) -> None:
    wanted = parse_range(header)
    assert wanted is None or parse_range(str(wanted)) == wanted


RANGES = st.one_of(
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)).map(lambda pair: ByteRange(min(pair), max(pair))),
    st.integers(0, 10**19 - 1).map(lambda first: ByteRange(first, None)),
    st.integers(0, 10**19 - 1).map(lambda last: ByteRange(None, last)),
)
SPACE = st.text(" \t", max_size=3)


@given(st.lists(st.tuples(SPACE, RANGES, SPACE), max_size=20), st.sampled_from(["bytes=", "Bytes=", "BYTES="]))
def test_several_ranges_round_trip(ranges: list[tuple[str, ByteRange, str]], unit: str) -> None:
    text = ",".join(f"{before}{str(each).removeprefix('bytes=')}{after}" for before, each, after in ranges)
    expected = tuple(each for _, each, _ in ranges) if 0 < len(ranges) <= MAX_RANGES else ()
    assert parse_ranges(unit + text) == expected
    assert parse_range(unit + text) == (expected[0] if len(expected) == 1 else None)


@pytest.mark.parametrize(
    "header",
    [
        "bytes=0-1,",
        "bytes=,0-1",
        "bytes=0-1,,3-4",
        "bytes=0-1,x",
        "bytes=0-1,5-4",
        "bytes=0-1,-",
        "bytes=0-1;3-4",
        "bytes=0-1,bytes=3-4",
        "items=0-1,3-4",
        "bytes=" + "0-1," * 1_000_000,
        ",".join(["bytes=0-0"] + ["1-1"] * MAX_RANGES),
    ],
)
def test_malformed_or_too_many_ranges_are_ignored(header: str) -> None:
    assert parse_ranges(header) == ()


@given(st.one_of(st.text(), ALMOST_RANGES, ALMOST_RANGES.map(lambda text: f"bytes={text}")))
def test_random_text_is_at_most_a_few_ranges(header: str) -> None:
    ranges = parse_ranges(header)
    assert len(ranges) <= MAX_RANGES
    assert parse_ranges("bytes=" + ",".join(str(each).removeprefix("bytes=") for each in ranges)) == ranges


@given(POSITIONS, POSITIONS, SIZES)
def test_first_to_last(first: int, last: int, size: int) -> None:
    wanted = parse_range(f"bytes={first}-{last}")
    if last < first:
        assert wanted is None
        return
    assert wanted is not None
    if first >= size:
        with pytest.raises(Unsatisfiable):
            wanted.within(size)
    else:
        assert wanted.within(size) == Span(first, min(last + 1, size), size)


@given(POSITIONS, SIZES)
def test_first_to_the_end(first: int, size: int) -> None:
    wanted = ByteRange(first, None)
    if first >= size:
        with pytest.raises(Unsatisfiable):
            wanted.within(size)
    else:
        assert wanted.within(size) == Span(first, size, size)


@given(POSITIONS, SIZES)
def test_suffix(count: int, size: int) -> None:
    wanted = ByteRange(None, count)
    if count == 0 or size == 0:
        with pytest.raises(Unsatisfiable):
            wanted.within(size)
    else:
        span = wanted.within(size)
        assert span.stop == size
        assert span.length == min(count, size)


@given(st.integers(0, 10**18), st.integers(1, 10**9), st.integers(0, 10**9))
def test_a_content_range_round_trips(start: int, length: int, rest: int) -> None:
    span = Span(start, start + length, start + length + rest)
    assert parse_content_range(span.content_range) == span
    assert span.is_whole == (start == 0 and rest == 0)


@given(st.one_of(st.text(), ALMOST_RANGES.map(lambda text: f"bytes {text}")))
def test_random_text_is_a_content_range_or_a_value_error(header: str) -> None:
    with contextlib.suppress(ValueError):
        span = parse_content_range(header)
        assert 0 <= span.start < span.stop <= span.size


@pytest.mark.parametrize(
    "header", ["", "bytes */10", "bytes 0-9/*", "bytes 5-4/10", "bytes 0-10/10", "bytes 0-9/10, bytes 0-9/10", "0-9/10"]
)
def test_an_impossible_content_range_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match=r"^not a Content-Range: "):
        parse_content_range(header)


@given(st.integers(0, 10**19 - 1))
def test_an_unsatisfied_range_round_trips(size: int) -> None:
    assert parse_unsatisfied_range(f"bytes */{size}") == size


@pytest.mark.parametrize(
    "header", ["", "bytes */", "bytes */x", "bytes 0-9/10", "bytes */-1", "bytes */" + "9" * 20, "*/1"]
)
def test_a_malformed_unsatisfied_range_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match=r"^not an unsatisfied range: "):
        parse_unsatisfied_range(header)
