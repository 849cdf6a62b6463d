"""The words of the OCI specs as values: digests, references, descriptors, and the keys that are looked up.

Parsing only: nothing here touches a network or a disk. Grammar: OCI image spec, "Descriptors" (digests), and OCI
distribution spec, "Pulling manifests" (repository names and tags); host names as in the Docker reference grammar.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self, TypeAlias

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+")
_HOST_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY = re.compile(rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[0-9a-fA-F:.]+\])(?::[0-9]{{1,5}})?")
_NAME_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_NAME_COMPONENT}(?:/{_NAME_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
MAX_NAME = 255
"""Longest registry and longest repository name that is accepted, in characters."""


def _shown(text: str) -> str:
    """`text` quoted for an error's line, however long or strange it is."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")


class Digest(str):
    """A validated digest, ``sha256:<64 hex>`` or ``sha512:<128 hex>``, in lower case. Raises ValueError."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        algorithm, _, encoded = text.partition(":")
        length = _HEX_LENGTH.get(algorithm)
        if length is None or len(encoded) != length or not _HEX.fullmatch(encoded):
            raise ValueError(f"not a digest: {_shown(text)}; right is sha256:<64 hex> or sha512:<128 hex>")
        return super().__new__(cls, text)

    @property
    def algorithm(self) -> str:
        """``sha256`` or ``sha512``; a name that `hashlib.new` takes."""
        return self.partition(":")[0]

    @property
    def encoded(self) -> str:
        """The hexadecimal part."""
        return self.partition(":")[2]

    @classmethod
    def of(cls, data: bytes | memoryview, algorithm: str = "sha256") -> Digest:
        """The digest of `data`."""
        return cls(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")


def is_registry(text: str) -> bool:
    """Whether `text` is a registry's host name, with or without a port."""
    return len(text) <= MAX_NAME and _REGISTRY.fullmatch(text) is not None


def looks_like_registry(component: str) -> bool:
    """Whether the first component of a path names a registry, by the rule all clients share: it has a dot or a
    port, or is ``localhost``. Otherwise it belongs to the repository.
    """
    return ("." in component or ":" in component or component == "localhost") and is_registry(component)


def is_repository(text: str) -> bool:
    """Whether `text` is a repository name (OCI distribution spec)."""
    return len(text) <= MAX_NAME and _REPOSITORY.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether `text` is a tag (OCI distribution spec)."""
    return _TAG.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """A tag reference written in full: ``docker.io/library/redis:7``. Raises ValueError when a part is malformed."""

    registry: str
    repository: str
    tag: str

    def __post_init__(self) -> None:
        if not looks_like_registry(self.registry):
            raise ValueError(f"not a registry: {_shown(self.registry)}; right is a host name, as docker.io")
        if not is_repository(self.repository):
            raise ValueError(f"not a repository: {_shown(self.repository)}; right is a name, as library/redis")
        if not is_tag(self.tag):
            raise ValueError(f"not a tag: {_shown(self.tag)}; right are up to 128 of A-Z a-z 0-9 _ . -")

    @classmethod
    def parse(cls, text: str) -> Reference:
        """The reference that `str()` of one gave. Nothing is filled in: registry and tag have to be there."""
        registry, slash, rest = text.partition("/")
        repository, colon, tag = rest.rpartition(":")
        if not slash or not colon:
            raise ValueError(f"not a full reference: {_shown(text)}; right is registry/repository:tag")
        return cls(registry, repository, tag)

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}:{self.tag}"


Key: TypeAlias = Digest | Reference
"""What is looked up. On the transport it is ``str(key)``; `parse_key` reads it back."""


def parse_key(text: str) -> Key:
    """The key that ``str(key)`` gave. A reference has a slash, a digest has none. Raises ValueError."""
    return Reference.parse(text) if "/" in text else Digest(text)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a digest stands for (OCI image spec, "Descriptors"). `size` is in bytes."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
