"""The Range and Content-Range headers."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peili.mirror.ranges import ByteRange, Span, Unsatisfiable, parse_content_range, parse_range

SIZES = st.integers(0, 10**19)
PLACES = st.integers(0, 10**19 - 1)
ALMOST = st.text("bytes=0123456789-,*/ \t\n٣", max_size=60)


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
def test_one_range_is_honoured_and_anything_else_ignored(header: str | None, expected: ByteRange | None) -> None:
    assert parse_range(header) == expected


@given(st.one_of(st.text(), ALMOST, ALMOST.map(lambda text: f"bytes={text}")))
def test_junk_is_ignored(header: str) -> None:
    wanted = parse_range(header)
    assert wanted is None or parse_range(str(wanted)) == wanted


@given(PLACES, PLACES, SIZES)
def test_from_here_to_there(first: int, last: int, size: int) -> None:
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


@given(PLACES, SIZES)
def test_from_here_on(first: int, size: int) -> None:
    wanted = ByteRange(first, None)
    if first >= size:
        with pytest.raises(Unsatisfiable):
            wanted.within(size)
    else:
        assert wanted.within(size) == Span(first, size, size)


@given(PLACES, SIZES)
def test_the_last_so_many(count: int, size: int) -> None:
    wanted = ByteRange(None, count)
    if count == 0 or size == 0:
        with pytest.raises(Unsatisfiable):
            wanted.within(size)
    else:
        span = wanted.within(size)
        assert span.stop == size
        assert span.length == min(count, size)


@given(st.integers(0, 10**18), st.integers(1, 10**9), st.integers(0, 10**9))
def test_a_content_range_comes_back_from_its_text(start: int, length: int, rest: int) -> None:
    span = Span(start, start + length, start + length + rest)
    assert parse_content_range(span.content_range) == span
    assert span.is_whole == (start == 0 and rest == 0)


@given(st.one_of(st.text(), ALMOST.map(lambda text: f"bytes {text}")))
def test_junk_is_a_content_range_or_a_value_error(header: str) -> None:
    with contextlib.suppress(ValueError):
        span = parse_content_range(header)
        assert 0 <= span.start < span.stop <= span.size


@pytest.mark.parametrize(
    "header", ["", "bytes */10", "bytes 0-9/*", "bytes 5-4/10", "bytes 0-10/10", "bytes 0-9/10, bytes 0-9/10", "0-9/10"]
)
def test_a_content_range_that_can_not_be_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match=r"^not a Content-Range: "):
        parse_content_range(header)
