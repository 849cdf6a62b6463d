"""Tells manifests and indexes from other content, by what they say themselves.

For stores that keep no media types, and for what comes from a peer, whose word need not be taken.
"""

from __future__ import annotations

import json
import re
from typing import Any, cast

OCTET_STREAM = "application/octet-stream"
"""The media type of content that is no manifest and no index."""
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

_MANIFESTS = frozenset({OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, DOCKER_SCHEMA1})
_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_MEDIA_TYPE = re.compile(f"{_NAME}/{_NAME}")


def is_manifest(media_type: str) -> bool:
    """Whether content of this type is a manifest or index for certain. One of another type may be one, too."""
    return media_type in _MANIFESTS


def is_media_type(text: str) -> bool:
    """Whether `text` can be a media type, without parameters (RFC 6838, section 4.2)."""
    return _MEDIA_TYPE.fullmatch(text) is not None


def detect(data: bytes) -> str:
    """The media type of the manifest or index that `data` is, whole; else ``application/octet-stream``.

    Never raises. A manifest need not name its type (OCI image spec: `mediaType` SHOULD be used); then its shape tells.
    A JSON object that names a type that is not known here is taken for a manifest of that type.
    """
    if data.lstrip()[:1] != b"{":
        return OCTET_STREAM
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError):
        return OCTET_STREAM
    if not isinstance(document, dict):
        return OCTET_STREAM
    return _of_document(cast("dict[str, Any]", document))


def _of_document(document: dict[str, Any]) -> str:
    if document.get("schemaVersion") == 1 and "fsLayers" in document:
        return DOCKER_SCHEMA1
    named = document.get("mediaType")
    if isinstance(named, str) and named and not is_manifest(named):
        return named if is_media_type(named) else OCTET_STREAM
    if document.get("schemaVersion") != 2:
        return OCTET_STREAM
    return named if isinstance(named, str) and named else _by_shape(document)


def _by_shape(document: dict[str, Any]) -> str:
    if isinstance(document.get("manifests"), list):
        return OCI_INDEX
    if isinstance(document.get("layers"), list) and isinstance(document.get("config"), dict):
        return OCI_MANIFEST
    return OCTET_STREAM
