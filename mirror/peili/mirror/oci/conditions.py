"""Conditional requests (RFC 9110, section 13). Content has one strong entity tag: its quoted digest."""

from __future__ import annotations

import re

from peili.mirror.oci.references import Digest

_ENTITY_TAG = re.compile(r'(?:W/)?("[^"]*")')


def entity_tag(digest: Digest) -> str:
    """The ETag of content."""
    return f'"{digest}"'


def none_match(header: str | None, digest: Digest) -> bool:
    """Whether If-None-Match holds: the client does not have the content yet. Compares weakly (RFC 9110, 13.1.2)."""
    if header is None:
        return True
    if header.strip() == "*":
        return False
    return entity_tag(digest) not in _ENTITY_TAG.findall(header)


def range_applies(if_range: str | None, digest: Digest) -> bool:
    """Whether a Range may be honoured under If-Range. Compares strongly; a date never matches (RFC 9110, 13.1.5)."""
    return if_range is None or if_range.strip() == entity_tag(digest)
