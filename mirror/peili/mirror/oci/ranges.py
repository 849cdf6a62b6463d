"""Range requests and conditional requests (RFC 9110, sections 13 and 14), without I/O.

Content never changes, so it has one strong entity tag: its digest in quotes.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from peili.mirror.oci.references import Digest

MAX_RANGES = 16
"""A Range header with more ranges is ignored. No known client needs more."""
# 19 digits are enough for the size of any file. Longer numbers are not converted.
_UNIT = re.compile(r"bytes=", re.ASCII | re.IGNORECASE)
_RANGE = re.compile(r"[ \t]*([0-9]{1,19})?-([0-9]{1,19})?[ \t]*", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})", re.ASCII | re.IGNORECASE)
_UNSATISFIED_RANGE = re.compile(r"bytes \*/([0-9]{1,19})", re.ASCII | re.IGNORECASE)
_ENTITY_TAG = re.compile(r'(?:W/)?("[^"]*")')


class Unsatisfiable(ValueError):
    """The content has no byte of the range (status 416).

    Attributes:
        size: The size of the content in bytes.
    """

    def __init__(self, wanted: object, size: int) -> None:
        super().__init__(f"no byte of {size} is in {wanted}")
        self.size = size


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A range as the client requests it: ``first-last``, ``first-`` or ``-last``.

    Attributes:
        first: The first byte. None means the last `last` bytes of the content.
        last: The last byte, inclusive. None means up to the end of the content.
    """

    first: int | None
    last: int | None

    def within(self, size: int) -> Span:
        """Return the bytes of this range in content of `size` bytes.

        Raises:
            Unsatisfiable: The content has no byte of this range.
        """
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
        """Return whether content of `size` bytes has any byte of this range."""
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
    """The bytes from `start` up to, but not including, `stop` of content of `size` bytes."""

    start: int
    stop: int
    size: int

    @classmethod
    def whole(cls, size: int) -> Span:
        """Return the span of all bytes of content of `size` bytes."""
        return cls(0, size, size)

    @property
    def length(self) -> int:
        """The number of bytes."""
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        """Whether these are all bytes of the content."""
        return self.start == 0 and self.stop == self.size

    @property
    def content_range(self) -> str:
        """The value of a Content-Range header."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


def parse_ranges(header: str | None) -> tuple[ByteRange, ...]:
    """Parse the value of a Range header.

    Returns:
        The ranges in the order of the header. The tuple is empty if the header is absent or must be ignored: it has
        another unit, more than `MAX_RANGES` ranges, or a malformed range (RFC 9110, section 14.2).
    """
    unit = _UNIT.match(header) if header is not None else None
    if header is None or unit is None or header.count(",") >= MAX_RANGES:
        return ()
    parsed = [_parse_range(text) for text in header[unit.end() :].split(",")]
    ranges = tuple(each for each in parsed if each is not None)
    return ranges if len(ranges) == len(parsed) else ()


def _parse_range(text: str) -> ByteRange | None:
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    first, last = (None if number is None else int(number) for number in match.groups())
    if first is None and last is None:
        return None
    if first is not None and last is not None and last < first:
        return None
    return ByteRange(first, last)


def parse_content_range(header: str) -> Span:
    """Parse the Content-Range header of a 206 response.

    Raises:
        ValueError: The header is malformed.
    """
    match = _CONTENT_RANGE.fullmatch(header)
    if match is None:
        raise ValueError(f"not a Content-Range: {header[:80]!a}; expected bytes FIRST-LAST/SIZE")
    first, last, size = (int(text) for text in match.groups())
    if not first <= last < size:
        raise ValueError(f"not a Content-Range: {header!a}; its numbers contradict each other")
    return Span(first, last + 1, size)


def parse_unsatisfied_range(header: str) -> int:
    """Parse the Content-Range header of a 416 response. Return the size of the content in bytes.

    Raises:
        ValueError: The header is malformed.
    """
    match = _UNSATISFIED_RANGE.fullmatch(header)
    if match is None:
        raise ValueError(f"not an unsatisfied range: {header[:80]!a}; expected bytes */SIZE")
    return int(match[1])


def entity_tag(digest: Digest) -> str:
    """Return the value of the ETag header for the content of `digest`."""
    return f'"{digest}"'


def is_not_modified(if_none_match: str | None, digest: Digest) -> bool:
    """Return whether If-None-Match says that the client has the content already. Compares weakly (RFC 9110, 13.1.2)."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or entity_tag(digest) in _ENTITY_TAG.findall(if_none_match)


def if_range_matches(if_range: str | None, digest: Digest) -> bool:
    """Return whether If-Range allows a partial response. Compares strongly. A date never matches (RFC 9110, 13.1.5)."""
    return if_range is None or if_range.strip() == entity_tag(digest)


@dataclass(frozen=True, slots=True)
class MultipartByteranges:
    """The framing of a ``multipart/byteranges`` body (RFC 9110, section 14.6).

    Iterate over it to get each part: first the bytes that precede the part, then the span of the part itself.

    Args:
        media_type: The media type of the content.
        spans: The parts.
        boundary: The text between the parts.
    """

    media_type: str
    spans: Sequence[Span]
    boundary: str = field(default_factory=lambda: secrets.token_hex(16))  # the author of the content cannot know it

    @property
    def content_type(self) -> str:
        """The Content-Type of the response."""
        return f"multipart/byteranges; boundary={self.boundary}"

    @property
    def length(self) -> int:
        """The length of the whole body in bytes."""
        return sum(len(head) + span.length for head, span in self) + len(self.end)

    def __iter__(self) -> Iterator[tuple[bytes, Span]]:
        line_end = ""  # nothing precedes the first delimiter
        for span in self.spans:
            headers = f"Content-Type: {self.media_type}\r\nContent-Range: {span.content_range}\r\n"
            yield f"{line_end}--{self.boundary}\r\n{headers}\r\n".encode("latin-1"), span
            line_end = "\r\n"

    @property
    def end(self) -> bytes:
        """The bytes that follow the last part."""
        return f"\r\n--{self.boundary}--\r\n".encode("latin-1")
