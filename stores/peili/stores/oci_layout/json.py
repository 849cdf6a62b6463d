"""Reads descriptors and names out of the JSON of an OCI image layout, believing none of it. No files here."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

from peili.mirror import Descriptor, Digest, Reference

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"


def entries_of(index: bytes) -> tuple[Descriptor, ...]:
    """The descriptors in an ``index.json``. Raises ValueError where it is none."""
    document = _object(index)
    if not isinstance(document.get("manifests"), list):
        raise ValueError("it has no list of manifests")  # noqa: TRY004 - what was read is wrong, not the call
    return tuple(_in_fields(document, ("manifests",)))


def children_of(manifest: bytes) -> tuple[Descriptor, ...]:
    """The descriptors in a manifest or index of any kind. Raises ValueError where it is none."""
    return tuple(_in_fields(_object(manifest), ("manifests", "layers", "blobs", "config", "subject")))


def tag_of(annotations: Mapping[str, str], repository: str | None) -> Reference | None:
    """The tag that an entry of ``index.json`` bears by its annotations, if it is one.

    A full reference is taken as it is, first containerd's; a bare tag belongs to `repository`.
    """
    names = [annotations[key] for key in (CONTAINERD_NAME, REF_NAME) if key in annotations]
    if repository is not None and REF_NAME in annotations:
        names.append(f"{repository}:{annotations[REF_NAME]}")
    for name in names:
        try:
            return Reference.parse(name)
        except ValueError:
            continue
    return None


def _object(data: bytes) -> dict[str, object]:
    try:
        document: object = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - what was read is wrong, not the call
    return cast("dict[str, object]", document)


def _in_fields(document: Mapping[str, object], fields: Collection[str]) -> Iterator[Descriptor]:
    """What is no descriptor is left out."""
    for name in fields:
        value = document.get(name)
        for each in cast("list[object]", value) if isinstance(value, list) else [value]:
            if isinstance(each, dict) and (found := _descriptor(cast("dict[str, Any]", each))):
                yield found


def _descriptor(entry: Mapping[str, Any]) -> Descriptor | None:
    media_type, digest, size = entry.get("mediaType"), entry.get("digest"), entry.get("size")
    if not isinstance(digest, str) or not isinstance(size, int) or isinstance(size, bool):
        return None
    annotations = entry.get("annotations")
    if not isinstance(annotations, dict):
        annotations = {}
    strings = {key: value for key, value in cast("dict[str, Any]", annotations).items() if isinstance(value, str)}
    try:
        return Descriptor(media_type if isinstance(media_type, str) else "", Digest(digest), size, strings)
    except ValueError:
        return None
