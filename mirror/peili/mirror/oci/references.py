"""The terms of the OCI specs as values: digests, references, descriptors, media types, and the keys of lookups. No I/O.

The grammar of digests is in the OCI image spec, "Descriptors". That of repository names and tags is in the OCI
distribution spec, "Pulling manifests". That of host names is in the Docker reference grammar.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias, cast

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+")
_HOST_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY = re.compile(rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[0-9a-fA-F:.]+\])(?::[0-9]{{1,5}})?")
_NAME_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_NAME_COMPONENT}(?:/{_NAME_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
MAX_NAME = 255
"""The maximum length of a registry's name and of a repository's name, in characters."""

OCTET_STREAM = "application/octet-stream"
"""The media type of all content that is not a manifest or an index."""
MAX_MANIFEST = 4 << 20
"""The maximum size of a manifest in bytes. A registry may refuse a larger one (OCI distribution spec)."""
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

_MANIFESTS = frozenset({OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, DOCKER_SCHEMA1})
_TYPE_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_MEDIA_TYPE = re.compile(f"{_TYPE_NAME}/{_TYPE_NAME}")


def _quoted(text: str) -> str:
    """Return `text` quoted for an error message, on one line and not too long."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")


class Digest(str):
    """A validated digest, ``sha256:<64 hex>`` or ``sha512:<128 hex>``, in lower case.

    Raises:
        ValueError: The text is not a digest.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        algorithm, _, encoded = text.partition(":")
        length = _HEX_LENGTH.get(algorithm)
        if length is None or len(encoded) != length or not _HEX.fullmatch(encoded):
            raise ValueError(f"not a digest: {_quoted(text)}; right is sha256:<64 hex> or sha512:<128 hex>")
        return super().__new__(cls, text)

    @property
    def algorithm(self) -> str:
        """The algorithm, ``sha256`` or ``sha512``. It is a name that `hashlib.new` takes."""
        return self.partition(":")[0]

    @property
    def encoded(self) -> str:
        """The hexadecimal part."""
        return self.partition(":")[2]

    @classmethod
    def of(cls, data: bytes | memoryview, algorithm: str = "sha256") -> Digest:
        """Return the digest of `data`.

        Args:
            data: The whole content.
            algorithm: ``sha256`` or ``sha512``.

        Raises:
            ValueError: Another algorithm is given.
        """
        return cls(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")


def is_registry(text: str) -> bool:
    """Return whether `text` is the host name of a registry, with or without a port."""
    return len(text) <= MAX_NAME and _REGISTRY.fullmatch(text) is not None


def looks_like_registry(component: str) -> bool:
    """Return whether `component`, the first one of a name, is a registry and not a part of the repository's name.

    All clients use the same rule: a registry has a dot or a port, or is ``localhost``.
    """
    return ("." in component or ":" in component or component == "localhost") and is_registry(component)


def is_repository(text: str) -> bool:
    """Return whether `text` is a repository name (OCI distribution spec)."""
    return len(text) <= MAX_NAME and _REPOSITORY.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Return whether `text` is a tag (OCI distribution spec)."""
    return _TAG.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """A tag reference with all its parts, such as ``docker.io/library/redis:7``.

    Raises:
        ValueError: A part is malformed.
    """

    registry: str
    repository: str
    tag: str

    def __post_init__(self) -> None:
        if not looks_like_registry(self.registry):
            raise ValueError(f"not a registry: {_quoted(self.registry)}; right is a host name such as docker.io")
        if not is_repository(self.repository):
            raise ValueError(f"not a repository: {_quoted(self.repository)}; right is a name such as library/redis")
        if not is_tag(self.tag):
            raise ValueError(f"not a tag: {_quoted(self.tag)}; right are up to 128 of A-Z a-z 0-9 _ . -")

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse a reference with a registry and a tag. No defaults are used.

        Raises:
            ValueError: `text` is not a full reference.
        """
        registry, slash, rest = text.partition("/")
        repository, colon, tag = rest.rpartition(":")
        if not slash or not colon:
            raise ValueError(f"not a full reference: {_quoted(text)}; right is registry/repository:tag")
        return cls(registry, repository, tag)

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}:{self.tag}"


Key: TypeAlias = Digest | Reference
"""What a host looks up. On the wire it is ``str(key)``; `parse_key` parses it."""


def parse_key(text: str) -> Key:
    """Parse a key, as ``str(key)`` writes it. A reference has a slash, a digest has none.

    Raises:
        ValueError: `text` is not a key.
    """
    return Reference.parse(text) if "/" in text else Digest(text)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a digest is (OCI image spec, "Descriptors").

    Attributes:
        media_type: The media type of the content.
        digest: The digest of the content.
        size: The size of the content in bytes.
        annotations: More data about the content.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)


def is_manifest(media_type: str) -> bool:
    """Return whether `media_type` is a known type of manifests or indexes. There may be others."""
    return media_type in _MANIFESTS


def is_media_type(text: str) -> bool:
    """Return whether `text` can be a media type, without parameters (RFC 6838, section 4.2)."""
    return _MEDIA_TYPE.fullmatch(text) is not None


def detect_media_type(data: bytes) -> str:
    """Return the media type of content by its bytes: that of a manifest or index, else ``application/octet-stream``.

    It is for stores that keep no media types, and for content from peers, whose headers are not trusted. A manifest may
    have no `mediaType` (the OCI image spec says SHOULD). Then its fields decide. A JSON object with an unknown
    `mediaType` counts as a manifest of that type. Never raises.

    Args:
        data: The whole content.
    """
    if data.lstrip()[:1] != b"{":
        return OCTET_STREAM
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError):
        return OCTET_STREAM
    if not isinstance(document, dict):
        return OCTET_STREAM
    return _document_type(cast("dict[str, Any]", document))


def _document_type(document: dict[str, Any]) -> str:
    if document.get("schemaVersion") == 1 and "fsLayers" in document:
        return DOCKER_SCHEMA1
    named = document.get("mediaType")
    if isinstance(named, str) and named and not is_manifest(named):
        return named if is_media_type(named) else OCTET_STREAM
    if document.get("schemaVersion") != 2:
        return OCTET_STREAM
    return named if isinstance(named, str) and named else _type_by_fields(document)


def _type_by_fields(document: dict[str, Any]) -> str:
    if isinstance(document.get("manifests"), list):
        return OCI_INDEX
    if isinstance(document.get("layers"), list) and isinstance(document.get("config"), dict):
        return OCI_MANIFEST
    return OCTET_STREAM
