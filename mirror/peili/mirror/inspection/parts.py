"""The parts of an image, and what its manifests say about them."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from peili.mirror.oci.documents import digest_in, read_object, size_in
from peili.mirror.oci.references import OCI_INDEX, Digest, detect_media_type, is_manifest
from peili.mirror.peer_api.peers import Holder, Peer

MANIFEST, CONFIG, LAYER = "manifest", "config", "layer"
_MOST_CHILDREN = 512
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


@dataclass(slots=True)
class Part:
    """One blob or manifest of an image.

    Attributes:
        kind: `MANIFEST`, `CONFIG` or `LAYER`.
        digest: Its digest.
        size: Its size in bytes, if known.
        is_here: Whether this host's store has it.
        holders: The peers that have it, whole or in part.
    """

    kind: str
    digest: Digest
    size: int | None = None
    is_here: bool = False
    holders: list[Holder] = field(default_factory=list[Holder])

    @property
    def source(self) -> str:
        """From where a pull would get it now: ``store``, ``peers`` or ``upstream``."""
        return "store" if self.is_here else "peers" if self.holders else "upstream"

    def json(self, name_of: Callable[[Peer], str]) -> dict[str, Any]:
        """Return it as values for JSON. `name_of` returns the name of a peer for people."""
        return {
            "kind": self.kind,
            "digest": self.digest,
            "size": self.size,
            "here": self.is_here,
            "holders": [
                {
                    "id": each.peer.id,
                    "name": name_of(each.peer),
                    "complete": each.complete,
                    "available": each.available,
                }
                for each in self.holders
            ],
            "source": self.source,
        }


def children(data: bytes) -> list[Part]:
    """Return what the manifest or index `data` refers to: of an index, the manifests for this host's platform.

    If none is for this platform, all are returned. Malformed entries are left out. Never raises.
    """
    media_type = detect_media_type(data)
    if not is_manifest(media_type):
        return []
    document = read_object(data)
    if isinstance(document.get("manifests"), list) or media_type == OCI_INDEX:
        entries = [each for each in _entries(document.get("manifests")) if _is_image(each)]
        fitting = [each for each in entries if _is_for_this_platform(each)]
        return _parts(fitting or entries, MANIFEST)
    return [*_parts(_entries([document.get("config")]), CONFIG), *_parts(_entries(document.get("layers")), LAYER)]


def _entries(value: object) -> list[Mapping[str, Any]]:
    values = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("Mapping[str, Any]", each) for each in values if isinstance(each, dict)][:_MOST_CHILDREN]


def _parts(entries: list[Mapping[str, Any]], kind: str) -> list[Part]:
    return list(_valid_parts(entries, kind))


def _valid_parts(entries: list[Mapping[str, Any]], kind: str) -> Iterator[Part]:
    seen: set[Digest] = set()
    for each in entries:
        try:
            digest = digest_in(each)
        except ValueError:
            continue
        if digest not in seen:
            seen.add(digest)
            yield Part(kind, digest, size_in(each))


def _is_image(entry: Mapping[str, Any]) -> bool:
    """Return whether the entry of an index is not an attestation, which no runtime pulls."""
    return _platform_of(entry).get("os") != "unknown"


def _is_for_this_platform(entry: Mapping[str, Any]) -> bool:
    machine = platform.machine()
    wanted = _platform_of(entry)
    return wanted.get("os") == "linux" and wanted.get("architecture") == _ARCHITECTURES.get(machine, machine)


def _platform_of(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    found = entry.get("platform")
    return cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}
