"""A question to a registry, the answers that there are, and how a response becomes one of them. No I/O."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TypeAlias
from urllib.parse import urljoin, urlsplit

from peili.mirror.oci.references import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    OCTET_STREAM,
    Descriptor,
    Digest,
    is_media_type,
)
from peili.mirror.oci.requests import Endpoint
from peili.mirror.upstream.challenges import Challenge, find_challenge
from peili.mirror.upstream.exchanges import RegistryReply

MANIFESTS = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)
"""The media types that are asked for, in the order of preference of container runtimes."""
_LONGEST_PAUSE = 3600.0
_LINK = re.compile(r"<([^<>]{1,4096})>((?:[^,\"]|\"[^\"]*\")*)")
_NEXT = re.compile(r';\s*rel="?next"?', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Question:
    """What a registry is asked.

    Attributes:
        registry: The registry, as references name it.
        repository: The repository.
        endpoint: The endpoint of the API.
        reference: The tag or the digest; ``list`` for `Endpoint.TAGS`.
        authorization: The Authorization header of the request that this question is for. It is sent only to the host
            that asked for it, and never kept.
        accept: The media types that the answer may have.
    """

    registry: str
    repository: str
    endpoint: Endpoint
    reference: str
    authorization: str | None = field(default=None, repr=False)
    accept: Sequence[str] = MANIFESTS

    @property
    def path(self) -> str:
        """The path below the root of the API."""
        return f"/{self.repository}/{self.endpoint.value}/{self.reference}"

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository} {self.reference}"


@dataclass(frozen=True, slots=True)
class Readable:
    """The registry has it, and this requester may read it.

    Attributes:
        descriptor: What it is; None if the registry only says from where to get the blob.
    """

    descriptor: Descriptor | None


@dataclass(frozen=True, slots=True)
class Challenged:
    """The registry demands rights: 401.

    Attributes:
        challenge: What it demands. The parameter ``error`` says what is wrong with a token that was sent, for example
            ``invalid_token`` if it has expired.
    """

    challenge: Challenge


@dataclass(frozen=True, slots=True)
class Denied:
    """The registry says that this requester may not read it, or its answer can't be used.

    Attributes:
        why: The reason, for the log.
    """

    why: str


@dataclass(frozen=True, slots=True)
class Absent:
    """The registry does not have it, or does not say so to this requester."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """There is no answer now: no connection, no answer in time, too many requests, or an error of the registry.

    Attributes:
        why: The reason, for the log and for people.
        retry_after: Seconds for which the registry wants no request; None if it does not say.
    """

    why: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """A document of the registry.

    Attributes:
        pages: The bodies of its parts, in their order.
    """

    pages: tuple[bytes, ...]


Refusal: TypeAlias = Challenged | Denied | Absent | Unreachable
Answer: TypeAlias = Readable | Refusal


def refusal(reply: RegistryReply) -> Refusal | None:
    """Return why the reply has no content; None for status 200."""
    match reply.status:
        case 200:
            return None
        case 401:
            challenge = find_challenge(reply.challenges)
            return Denied("401 without a challenge") if challenge is None else Challenged(challenge)
        case 403 | 451:
            return Denied(f"it answered {reply.status}")
        case 404 | 410:
            return Absent()
        case 408 | 429 | 500 | 502 | 503 | 504:
            return Unreachable(f"it answered {reply.status}", _retry_after(reply.headers.get("retry-after")))
        case _:  # what a requester sends must not look like an outage
            return Denied(f"it answered {reply.status}")


def descriptor_of(reply: RegistryReply, question: Question) -> Descriptor | None:
    """Return the descriptor that the headers of a reply to HEAD say; None if they do not say all of it.

    Raises:
        ValueError: A header is malformed, or the digest is another one than the one that was asked for.
    """
    said, length = reply.headers.get("docker-content-digest"), reply.headers.get("content-length")
    wanted = question.reference if ":" in question.reference else None
    if (text := said or wanted) is None or length is None:
        return None
    digest = Digest(text)
    if wanted is not None and digest != wanted:
        raise ValueError(f"it answered with another digest, {digest}")
    return Descriptor(media_type_of(reply), digest, _length(length))


def media_type_of(reply: RegistryReply) -> str:
    """Return the media type of a reply without its parameters. Raises ValueError."""
    media_type = reply.headers.get("content-type", OCTET_STREAM).partition(";")[0].strip()
    if not is_media_type(media_type):
        raise ValueError(f"it answered with a malformed media type, {media_type[:80]!a}")
    return media_type


def next_page(reply: RegistryReply, url: str) -> str | None:
    """Return the URL of the page after the one at `url` (RFC 8288); None for the last one.

    A page at another host is none: it would get the Authorization header.
    """
    for link, parameters in _LINK.findall(reply.headers.get("link", "")):
        if _NEXT.search(parameters):
            following = urljoin(url, link)
            return following if urlsplit(following)[:2] == urlsplit(url)[:2] else None
    return None


def _length(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValueError(f"it answered with a malformed length, {text[:80]!a}")
    return int(text)


def _retry_after(text: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which has seconds or a date (RFC 9110, 10.2.3)."""
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), _LONGEST_PAUSE)
    try:
        return min(max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0), _LONGEST_PAUSE)
    except (ValueError, OverflowError, TypeError):
        return None
