"""Several parts of content in one body: ``multipart/byteranges`` (RFC 9110, section 14.6). What stands between them is
made here; who sends it, and the parts' own bytes, is stored.py's matter.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from peili.mirror.oci.ranges import Span


def _boundary() -> str:
    """What nobody who made the content can have put into it."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Multipart:
    """The parts `spans` of content that is of `media_type`."""

    media_type: str
    spans: Sequence[Span]
    boundary: str = field(default_factory=_boundary)

    @property
    def content_type(self) -> str:
        """The value of the answer's Content-Type."""
        return f"multipart/byteranges; boundary={self.boundary}"

    @property
    def length(self) -> int:
        """Bytes of the whole body."""
        return sum(len(head) + span.length for head, span in self) + len(self.end)

    def __iter__(self) -> Iterator[tuple[bytes, Span]]:
        """What stands before the bytes of each part, with the part."""
        line_end = ""  # what is before the first part is nothing
        for span in self.spans:
            headers = f"Content-Type: {self.media_type}\r\nContent-Range: {span.content_range}\r\n"
            yield f"{line_end}--{self.boundary}\r\n{headers}\r\n".encode("latin-1"), span
            line_end = "\r\n"

    @property
    def end(self) -> bytes:
        """What stands behind the last part."""
        return f"\r\n--{self.boundary}--\r\n".encode("latin-1")
