"""Parses multipart/byteranges with the MIME parser of the standard library."""

from __future__ import annotations

import email.policy
from collections.abc import Sequence
from dataclasses import dataclass
from email.parser import BytesParser

import httpx


@dataclass(frozen=True)
class Part:
    """One part."""

    content_type: str
    content_range: str
    data: bytes


def parts_of(response: httpx.Response) -> Sequence[Part]:
    """Return the parts of a multipart/byteranges response."""
    return parse_parts(response.headers["Content-Type"], response.content)


def parse_parts(content_type: str, body: bytes) -> Sequence[Part]:
    """Return the parts of `body`."""
    head = f"MIME-Version: 1.0\r\nContent-Type: {content_type}\r\n\r\n".encode()
    message = BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    assert message.get_content_type() == "multipart/byteranges"
    assert message.is_multipart()
    assert not message.defects
    boundary = message.get_boundary()
    assert boundary is not None
    parts: list[Part] = []
    # The parser finds the parts, but takes their bytes for text and may change line ends.
    for part, raw in zip(message.iter_parts(), _raw(body, boundary), strict=True):
        assert not part.defects
        parts.append(Part(str(part["Content-Type"]), str(part["Content-Range"]), raw))
    return parts


def _raw(body: bytes, boundary: str) -> Sequence[bytes]:
    first, *parts, last = (b"\r\n" + body).split(f"\r\n--{boundary}".encode())
    assert (first, last) == (b"", b"--\r\n")
    return [part.split(b"\r\n\r\n", 1)[1] for part in parts]
