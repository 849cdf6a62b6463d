"""Tells manifests and indexes from other content, by what they say themselves.

For stores that keep no media types, and for what comes from a peer, whose word need not be taken.
"""

from __future__ import annotations

import json
from typing import Any, cast

OCTET_STREAM = "application/octet-stream"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

_MANIFESTS = frozenset({OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, DOCKER_SCHEMA1})


def is_manifest(media_type: str) -> bool:
    """Whether content of this type is asked for under ``/manifests/``."""
    return media_type in _MANIFESTS


def detect(data: bytes) -> str:
    """The media type of the manifest or index that `data` is, whole; else ``application/octet-stream``.

    Never raises. A manifest need not name its type (OCI image spec: `mediaType` SHOULD be used); then its shape tells.
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
    if document.get("schemaVersion") != 2:
        return OCTET_STREAM
    named = document.get("mediaType")
    if isinstance(named, str) and named:
        return named if is_manifest(named) else OCTET_STREAM
    if isinstance(document.get("manifests"), list):
        return OCI_INDEX
    if isinstance(document.get("layers"), list) and isinstance(document.get("config"), dict):
        return OCI_MANIFEST
    return OCTET_STREAM
