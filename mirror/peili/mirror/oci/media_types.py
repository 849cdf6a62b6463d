"""Tells manifests and indexes from other content by their bytes.

This is for stores that keep no media types, and for content from peers, whose headers are not trusted.
"""

from __future__ import annotations

import json
import re
from typing import Any, cast

OCTET_STREAM = "application/octet-stream"
"""The media type of all content that is not a manifest or an index."""
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

_MANIFESTS = frozenset({OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, DOCKER_SCHEMA1})
_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_MEDIA_TYPE = re.compile(f"{_NAME}/{_NAME}")


def is_manifest(media_type: str) -> bool:
    """Whether content of this type is certainly a manifest or index. Content of other types may be one, too."""
    return media_type in _MANIFESTS


def is_media_type(text: str) -> bool:
    """Whether `text` can be a media type, without parameters (RFC 6838, section 4.2)."""
    return _MEDIA_TYPE.fullmatch(text) is not None


def detect(data: bytes) -> str:
    """Return the media type of the manifest or index `data`; if it is neither, ``application/octet-stream``.

    A manifest need not state its type (OCI image spec: `mediaType` SHOULD be used). Then its shape decides. A JSON
    object with an unknown type counts as a manifest of that type. Never raises.

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
