"""What a manifest or an index refers to, as far as a host of one platform needs it. No I/O."""

from __future__ import annotations

import platform as machine
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from peili.mirror.oci.documents import digest_in, list_of, read_object, table_of, text_in
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
    document = read_object(data)
    if "manifests" in document:
        entries = _chosen([table_of(each) for each in list_of(document["manifests"])], platform)
        if not entries:
            raise ValueError(f"the index has nothing for {platform}")
        typed = [(is_manifest(text_in(each, "mediaType")), each) for each in entries]
        manifests, blobs = ([each for is_one, each in typed if is_one is wanted] for wanted in (True, False))
        return Children(_digests(manifests), _digests(blobs))
    layers = [each for each in map(table_of, list_of(document.get("layers", []))) if not each.get("urls")]
    config = [table_of(document["config"])] if "config" in document else []
    old_layers = map(table_of, list_of(document.get("fsLayers", [])))  # schema 1
    return Children((), _once([*_digests([*config, *layers]), *_digests(old_layers, "blobSum")]))


def all_children_of(data: bytes) -> Children:
    """Return everything that the manifest or the index in `data` refers to, for every platform.

    Nobody need have checked that: see checked_children.py. What is malformed in it is left out.

    Raises:
        ValueError: `data` is no JSON object.
    """
    document = read_object(data)
    parts = [document.get("config"), *_items(document, "layers"), *_items(document, "blobs")]
    blobs = [*_valid_digests(parts), *_valid_digests(_items(document, "fsLayers"), "blobSum")]  # those of schema 1
    return Children(_once(_valid_digests(_items(document, "manifests"))), _once(blobs))


def _chosen(entries: list[Mapping[str, Any]], platform: str) -> list[Mapping[str, Any]]:
    """Return the entries of an index that are for `platform`, and those without a platform."""
    system, _, rest = platform.partition("/")
    architecture, _, variant = rest.partition("/")
    matching: dict[str, list[Mapping[str, Any]]] = {}
    for each in entries:
        its = table_of(each.get("platform", {}))
        its_variant = text_in(its, "variant")
        is_runnable = not variant or its_variant <= variant  # v6 and v7, as strings
        if (its.get("os"), its.get("architecture")) == (system, architecture) and is_runnable:
            matching.setdefault(its_variant if variant else "", []).append(each)
    newest = matching[max(matching)] if matching else []
    return [*newest, *(each for each in entries if "platform" not in each)]


def _digests(descriptors: Iterable[Mapping[str, Any]], name: str = "digest") -> tuple[Digest, ...]:
    return _once(digest_in(each, name) for each in descriptors)


def _valid_digests(descriptors: Iterable[object], name: str = "digest") -> Iterator[Digest]:
    for each in descriptors:
        with suppress(ValueError):
            yield digest_in(table_of(each), name)


def _items(document: Mapping[str, Any], name: str) -> list[object]:
    try:
        return list_of(document.get(name))
    except ValueError:
        return []


def _once(digests: Iterable[Digest]) -> tuple[Digest, ...]:
    return tuple(dict.fromkeys(digests))
