"""The Range header (RFC 9110, section 14). What is no byte range, or too many of them, is answered with the whole."""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST_RANGES = 16
"""More in one request are ignored, as what no client needs."""
# 19 digits hold every size that a file can have; longer numbers are not worth converting.
_UNIT = re.compile(r"bytes=", re.ASCII | re.IGNORECASE)
_RANGE = re.compile(r"[ \t]*([0-9]{1,19})?-([0-9]{1,19})?[ \t]*", re.ASCII)


class Unsatisfiable(ValueError):
    """The range lies outside of the content, which has `size` bytes (416)."""

    def __init__(self, wanted: object, size: int) -> None:
        super().__init__(f"no byte of {size} is in {wanted}")
        self.size = size


@dataclass(frozen=True, slots=True)
class ByteRange:
    """What was asked for: ``first-last``, ``first-`` (`last` None), or the last `last` bytes (`first` None)."""

    first: int | None
    last: int | None

    def within(self, size: int) -> Span:
        """The bytes that this means in content of `size` bytes. Raises Unsatisfiable."""
        if self.first is None:
            start = max(0, size - (self.last or 0))
            stop = size
        else:
            start = self.first
            stop = size if self.last is None else min(self.last + 1, size)
        if start >= stop:
            raise Unsatisfiable(self, size)
        return Span(start, stop, size)

    def is_within(self, size: int) -> bool:
        """Whether content of `size` bytes has any of these."""
        try:
            self.within(size)
        except Unsatisfiable:
            return False
        return True

    def __str__(self) -> str:
        first = "" if self.first is None else self.first
        last = "" if self.last is None else self.last
        return f"bytes={first}-{last}"


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` up to, without, `stop`, of content of `size` bytes."""

    start: int
    stop: int
    size: int

    @classmethod
    def whole(cls, size: int) -> Span:
        """All of the content."""
        return cls(0, size, size)

    @property
    def length(self) -> int:
        """How many bytes that are."""
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        """Whether that is all of the content."""
        return self.start == 0 and self.stop == self.size

    @property
    def content_range(self) -> str:
        """The value of a Content-Range header."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


def parse_ranges(header: str | None) -> tuple[ByteRange, ...]:
    """The byte ranges that `header` asks for, in its order; none where there are none, or they have to be ignored.

    Ignored are other units, more than `MOST_RANGES`, and all of them where one is malformed (RFC 9110, 14.2). Never
    raises.
    """
    unit = _UNIT.match(header) if header is not None else None
    if header is None or unit is None or header.count(",") >= MOST_RANGES:
        return ()
    found = [_parse_one(text) for text in header[unit.end() :].split(",")]
    ranges = tuple(each for each in found if each is not None)
    return ranges if len(ranges) == len(found) else ()


def parse_range(header: str | None) -> ByteRange | None:
    """The one byte range that `header` asks for; None where there is none, or not one. Never raises."""
    ranges = parse_ranges(header)
    return ranges[0] if len(ranges) == 1 else None


def _parse_one(text: str) -> ByteRange | None:
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    first, last = (None if number is None else int(number) for number in match.groups())
    if first is None and last is None:
        return None
    if first is not None and last is not None and last < first:
        return None
    return ByteRange(first, last)


_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})", re.ASCII | re.IGNORECASE)


def parse_content_range(header: str) -> Span:
    """The span that an answer with status 206 says it carries. Raises ValueError."""
    match = _CONTENT_RANGE.fullmatch(header)
    if match is None:
        raise ValueError(f"not a Content-Range: {header[:80]!a}; right is bytes FIRST-LAST/SIZE")
    first, last, size = (int(text) for text in match.groups())
    if not first <= last < size:
        raise ValueError(f"not a Content-Range: {header!a}; its numbers contradict each other")
    return Span(first, last + 1, size)


_UNSATISFIED_RANGE = re.compile(r"bytes \*/([0-9]{1,19})", re.ASCII | re.IGNORECASE)


def parse_unsatisfied_range(header: str) -> int:
    """The size of the content, of which an answer with status 416 says that it has no such range. Raises ValueError."""
    match = _UNSATISFIED_RANGE.fullmatch(header)
    if match is None:
        raise ValueError(f"not an unsatisfied range: {header[:80]!a}; right is bytes */SIZE")
    return int(match[1])
