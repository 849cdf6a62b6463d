"""What a manifest or an index refers to, as far as a host of one platform needs it. No I/O."""

from __future__ import annotations

import json
import platform as machine
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from peili.mirror.oci.references import Digest, is_manifest

_MACHINES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i686": "386",
    "armv7l": "arm/v7",
    "armv6l": "arm/v6",
}


@dataclass(frozen=True, slots=True)
class Children:
    """What is needed in addition to a manifest or an index.

    Attributes:
        manifests: The manifests and indexes.
        blobs: The configuration and the layers.
    """

    manifests: tuple[Digest, ...] = ()
    blobs: tuple[Digest, ...] = ()


def host_platform() -> str:
    """Return the platform of the images that a runtime on this machine pulls, such as ``linux/amd64``."""
    name = machine.machine()
    return f"linux/{_MACHINES.get(name, name)}"


def children_of(data: bytes, platform: str) -> Children:
    """Return what a runtime requests after the manifest or the index in `data`.

    Of an index, this is what is for `platform`, and what is for no platform in particular. Of a manifest, it is the
    configuration, and the layers that registries keep. Other documents have no children.

    Args:
        data: The document.
        platform: The platform, such as ``linux/arm/v7``. Of several variants that it can run, the newest one counts.

    Raises:
        ValueError: `data` is malformed, or an index without anything for `platform`.
    """
    document = _table(json.loads(data))
    if "manifests" in document:
        entries = _chosen([_table(each) for each in _list(document["manifests"])], platform)
        if not entries:
            raise ValueError(f"the index has nothing for {platform}")
        manifests = [each for each in entries if is_manifest(str(each.get("mediaType", "")))]
        blobs = [each for each in entries if each not in manifests]
        return Children(_digests(manifests), _digests(blobs))
    layers = [each for each in map(_table, _list(document.get("layers", []))) if not each.get("urls")]
    config = [_table(document["config"])] if "config" in document else []
    old_layers = [Digest(str(_table(each)["blobSum"])) for each in _list(document.get("fsLayers", []))]  # schema 1
    return Children((), tuple(dict.fromkeys([*_digests([*config, *layers]), *old_layers])))


def all_children_of(data: bytes) -> Children:
    """Return everything that the manifest or the index in `data` refers to, for every platform.

    Nobody need have checked that: see checked_children.py.

    Raises:
        ValueError: `data` is malformed.
    """
    document = _table(json.loads(data))
    entries = [_table(each) for each in _list(document.get("manifests", []))]
    parts = [*_list(document.get("layers", [])), *_list(document.get("blobs", [])), document.get("config", {})]
    tables = [table for each in parts if "digest" in (table := _table(each))]
    old_layers = [Digest(str(_table(each)["blobSum"])) for each in _list(document.get("fsLayers", []))]  # schema 1
    return Children(_digests(entries), tuple(dict.fromkeys([*_digests(tables), *old_layers])))


def _chosen(entries: list[Mapping[str, Any]], platform: str) -> list[Mapping[str, Any]]:
    """Return the entries of an index that are for `platform`, and those without a platform."""
    system, _, rest = platform.partition("/")
    architecture, _, variant = rest.partition("/")
    matching: dict[str, list[Mapping[str, Any]]] = {}
    for each in entries:
        its = _table(each.get("platform", {}))
        its_variant = str(its.get("variant") or "")
        is_runnable = not variant or its_variant <= variant  # v6 and v7, as strings
        if (its.get("os"), its.get("architecture")) == (system, architecture) and is_runnable:
            matching.setdefault(its_variant if variant else "", []).append(each)
    newest = matching[max(matching)] if matching else []
    return [*newest, *(each for each in entries if "platform" not in each)]


def _digests(descriptors: list[Mapping[str, Any]]) -> tuple[Digest, ...]:
    return tuple(dict.fromkeys(Digest(str(each.get("digest"))) for each in descriptors))


def _table(value: object) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return cast("Mapping[str, Any]", value)
    raise ValueError("the manifest has something else where an object is expected")


def _list(value: object) -> list[object]:
    if isinstance(value, list):
        return cast("list[object]", value)
    raise ValueError("the manifest has something else where a list is expected")
