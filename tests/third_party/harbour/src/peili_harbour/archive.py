"""Reads an image archive: a tar file with an OCI image layout, as ``skopeo copy … oci-archive:FILE`` writes it."""

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peili.mirror import MAX_MANIFEST, Descriptor, Digest, Reference, detect_media_type

_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@dataclass(frozen=True)
class Archive:
    """What an archive has: the descriptor of each digest, the offset of its bytes, and the target of each tag."""

    blobs: dict[Digest, Descriptor]
    offsets: dict[Digest, int]
    tags: dict[Reference, Descriptor]

    @classmethod
    def read(cls, path: Path) -> "Archive":
        """Read the archive at `path`. This blocks.

        Raises:
            OSError: The file can't be read.
            tarfile.TarError: It is not a tar file.
            ValueError: It is not an image archive. KeyError and TypeError mean the same.
        """
        blobs: dict[Digest, Descriptor] = {}
        offsets: dict[Digest, int] = {}
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, encoded = member.name.removeprefix("./").rpartition("/")
                if member.isfile() and folder == "blobs/sha256":
                    small = member.size <= MAX_MANIFEST and tar.extractfile(member)
                    digest = Digest(f"sha256:{encoded}")
                    blobs[digest] = Descriptor(detect_media_type(small.read() if small else b""), digest, member.size)
                    offsets[digest] = member.offset_data
            index = tar.extractfile("index.json")
            tags = _tags(json.load(index)["manifests"], blobs) if index else {}
        return cls(blobs, offsets, tags)


def _tags(entries: list[dict[str, Any]], blobs: dict[Digest, Descriptor]) -> dict[Reference, Descriptor]:
    """Return the targets of the full references in ``index.json``. A bare tag names no registry, so it is ignored."""
    tags: dict[Reference, Descriptor] = {}
    for entry in entries:
        for name in _NAMES:
            try:
                tags[Reference.parse(entry.get("annotations", {}).get(name, ""))] = blobs[Digest(entry["digest"])]
            except (KeyError, ValueError):
                continue
    return tags
