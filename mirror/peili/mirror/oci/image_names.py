"""Parses the name of an image as people write it: ``redis``, ``ghcr.io/o/app:v1`` or ``app@sha256:…``."""

from __future__ import annotations

from peili.mirror.oci.references import Digest, is_registry, looks_like_registry
from peili.mirror.oci.requests import Endpoint, HTTPError, Target, parse_target

_DEFAULT_REGISTRY = "docker.io"
_DEFAULT_TAG = "latest"


def parse_image(text: str) -> Target:
    """Return the manifest that `text` names.

    As for docker and ctr, ``docker.io`` and ``library/`` may be left out, and the default tag is ``latest``. A tag
    beside a digest is ignored.

    Raises:
        ValueError: `text` is not the name of an image. The message says what is wrong.
    """
    name, at, digest = text.strip().partition("@")
    head, _, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    path = f"{head}/{last}" if head else last
    first, slash, rest = path.partition("/")
    registry, repository = (first, rest) if slash and looks_like_registry(first) else (_DEFAULT_REGISTRY, path)
    if registry == _DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    if not is_registry(registry):
        raise ValueError(f"not the host name of a registry: {registry[:80]!a}")
    if at:
        Digest(digest)
    wanted = digest if at else tag if colon else _DEFAULT_TAG
    try:
        target = parse_target(f"/{repository}/manifests/{wanted}", ns=registry, default_registry=None)
    except HTTPError as error:
        raise ValueError(f"not the name of an image: {error}") from error
    if target.endpoint is not Endpoint.MANIFEST:
        raise ValueError(f"not the name of an image: {text[:80]!a}")
    return target
