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
    detect_media_type,
    is_manifest,
    is_media_type,
)
from peili.mirror.oci.requests import Endpoint
from peili.mirror.upstream.challenges import Challenge, find_challenge
from peili.mirror.upstream.exchanges import RegistryReply

MANIFESTS = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)
"""The media types that are asked for, in the order of preference of container runtimes."""
_LONGEST_PAUSE = 3600.0
_PARTIAL, _TOO_MANY = 206, 429
_BLOB_TYPE = re.compile(r"(application|binary)/(octet-stream|(vnd|x)[.-].+|gzip|zstd|tar)")
"""The media types that registries and storage give to blobs. Config is JSON, but so are many error messages."""
_PAGES = frozenset({"text/html", "application/xhtml+xml"})
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
        size: The size of the blob in bytes, if this host knows it. Not every registry names the digest of a blob.
    """

    registry: str
    repository: str
    endpoint: Endpoint
    reference: str
    authorization: str | None = field(default=None, repr=False)
    accept: Sequence[str] = MANIFESTS
    size: int | None = None

    @property
    def path(self) -> str:
        """The path below the root of the API."""
        return f"/{self.repository}/{self.endpoint.value}/{self.reference}"

    @property
    def digest(self) -> Digest | None:
        """The digest; None for a tag."""
        return Digest(self.reference) if ":" in self.reference else None

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository} {self.reference}"


@dataclass(frozen=True, slots=True)
class Readable:
    """The registry has it, and this requester may read it.

    Attributes:
        descriptor: What it is; None if the registry does not say all of it.
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
        is_down: Whether the registry is out of order, as far as this answer shows. False if it only wants fewer
            requests (429), or if this host did not ask it.
        was_asked: Whether that is what the registry did. False if it is not known to have been asked: then it may be
            in order, and this host was busy with other questions.
    """

    why: str
    retry_after: float | None = None
    is_down: bool = True
    was_asked: bool = True


def not_asked(why: str) -> Unreachable:
    """Return the answer to a question that this host did not send, or may not have sent."""
    return Unreachable(why, is_down=False, was_asked=False)


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
    """Return why the reply has no content; None if it has some."""
    match reply.status:
        case 200 | 206:
            return None
        case 401:
            challenge = find_challenge(reply.challenges)
            return Denied("401 without a challenge") if challenge is None else Challenged(challenge)
        case 403 | 451:
            return Denied(f"it answered {reply.status}")
        case 404 | 410:
            return Absent()
        case 408 | 429 | 500 | 502 | 503 | 504:
            pause = _retry_after(reply.headers.get("retry-after"))
            return Unreachable(f"it answered {reply.status}", pause, is_down=reply.status != _TOO_MANY)
        case _:  # what a requester sends must not look like an outage
            return Denied(f"it answered {reply.status}")


def manifest_of(reply: RegistryReply, question: Question) -> Readable | None:
    """Return what a good reply to HEAD says about a manifest; None if it does not show that it is one.

    A reply with status 200 is not enough: where people have to log in, each request may be answered with a page.

    Raises:
        ValueError: A header is malformed, or names another digest than the one that was asked for.
    """
    digest, media_type, size = _said_digest(reply, question), media_type_of(reply), _length(reply)
    if digest is None or size is None or not is_manifest(media_type):
        return None
    return Readable(Descriptor(media_type, digest, size))


def read_manifest_of(reply: RegistryReply, question: Question) -> Readable:
    """Return what the body of a good reply to GET is.

    Raises:
        ValueError: It is no manifest, or another one than the one that was asked for.
    """
    wanted, media_type = question.digest, media_type_of(reply)
    digest = Digest.of(reply.body) if wanted is None else Digest.of(reply.body, wanted.algorithm)
    if wanted not in {None, digest}:
        raise ValueError(f"it answered with another digest, {digest}")
    if not is_manifest(media_type):
        media_type = detect_media_type(reply.body)
    if wanted is None and media_type == OCTET_STREAM:
        raise ValueError("its answer is no manifest")
    return Readable(Descriptor(media_type, digest, len(reply.body)))


def blob_of(reply: RegistryReply, question: Question) -> Readable:
    """Return what a good reply to HEAD, or to GET for the first byte, says about a blob.

    The digest shows that it is the blob. Storage does not know digests: then the size shows it, or at least the media
    type, which is not that of a page.

    Raises:
        ValueError: A header is malformed, or it may be something else.
    """
    digest, media_type, size = _said_digest(reply, question), media_type_of(reply), _length(reply)
    if digest is None:
        if size is None or (question.size is not None and size != question.size):
            raise ValueError("it answered with another size")
        if media_type in _PAGES or (question.size is None and not _BLOB_TYPE.fullmatch(media_type)):
            raise ValueError(f"it answered with {media_type}, which is no blob")
        digest = question.digest
    return Readable(None if digest is None or size is None else Descriptor(media_type, digest, size))


def _said_digest(reply: RegistryReply, question: Question) -> Digest | None:
    """Return the digest that a reply names, if it does. Raises ValueError if it is not the one that was asked for."""
    if (said := reply.headers.get("docker-content-digest")) is None:
        return None
    if question.digest not in {None, digest := Digest(said)}:
        raise ValueError(f"it answered with another digest, {digest}")
    return digest


def media_type_of(reply: RegistryReply) -> str:
    """Return the media type of a reply without its parameters. Raises ValueError."""
    media_type = reply.headers.get("content-type", OCTET_STREAM).partition(";")[0].strip()
    if not is_media_type(media_type):
        raise ValueError(f"it answered with a malformed media type, {media_type[:80]!a}")
    return media_type


def next_page(reply: RegistryReply, url: str) -> str | None:
    """Return the URL of the page after the one at `url` (RFC 8288); None for the last one.

    A page at another host is none: it would get the Authorization header.

    Raises:
        ValueError: The URL is malformed.
    """
    for link, parameters in _LINK.findall(reply.headers.get("link", "")):
        if _NEXT.search(parameters):
            following = urljoin(url, link)
            return following if urlsplit(following)[:2] == urlsplit(url)[:2] else None
    return None


def _length(reply: RegistryReply) -> int | None:
    """Return the size of the content that a reply states; None if it states none. Raises ValueError."""
    text = reply.headers.get("content-length")
    if reply.status == _PARTIAL:
        text = reply.headers.get("content-range", "").rpartition("/")[2]
    if text is None:
        return None
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
