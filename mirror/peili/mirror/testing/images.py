"""Makes OCI images of random layers, for tests and demonstrations: real enough for any runtime to import and unpack."""

from __future__ import annotations

import json
import platform as machine
import random
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peili.mirror.oci.media_types import OCI_INDEX, OCI_MANIFEST
from peili.mirror.oci.references import Descriptor, Digest, Reference
from peili.mirror.testing.layers import BlobWriter, write_layer

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm/v7", "i686": "386"}


@dataclass(frozen=True, slots=True)
class Manifest:
    """The image of one platform."""

    platform: str
    descriptor: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """All it is made of: the manifest itself, its config, its layers."""
        return (self.descriptor, self.config, *self.layers)


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the layout at `path`. `target` is what its tags stand for: its index, or its only manifest."""

    path: Path
    target: Descriptor
    manifests: tuple[Manifest, ...]

    @property
    def manifest(self) -> Descriptor:
        """The manifest of the first platform."""
        return self.manifests[0].descriptor

    @property
    def config(self) -> Descriptor:
        """The config of the first platform."""
        return self.manifests[0].config

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        """The layers of the first platform, lowest first."""
        return self.manifests[0].layers

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Everything that a copy of the whole image has, each once, the target first."""
        every = [self.target, *(blob for manifest in self.manifests for blob in manifest.blobs)]
        return tuple({blob.digest: blob for blob in every}.values())

    def blob_path(self, digest: Digest) -> Path:
        """Where the layout keeps `digest`."""
        return self.path / "blobs" / digest.algorithm / digest.encoded


def host_platform() -> str:
    """The platform of images that a runtime on this machine pulls, such as ``linux/amd64``."""
    name = machine.machine()
    return f"linux/{_MACHINES.get(name, name)}"


def make_layout(
    path: Path,
    *,
    layers: Sequence[int],
    tags: Sequence[str] = (),
    annotations: Mapping[str, str] | None = None,
    platforms: Sequence[str] = (),
    compress: bool = False,
    seed: int | str | None = None,
) -> Image:
    """Write an image into the OCI image layout at `path`, which is made where it does not exist yet.

    Each of `layers` is a size in bytes: that layer is a tar of one file with so many random bytes (the blob itself is
    some 2 KiB larger), gzipped with `compress`. The same `seed` gives the same image; None gives a new one each time.

    Each of `tags` becomes an entry of ``index.json``. A bare tag (``v1``) is its ``org.opencontainers.image.ref.name``;
    of a full reference (``docker.io/library/demo:v1``) that is the tag, and ``io.containerd.image.name`` is the whole.
    An entry that had the same name is replaced; without tags there is one without a name. `annotations` go to each.

    With more than one of `platforms` (by default this machine's is the only one) the target is an index with a
    manifest for each, of layers of its own. Blocks while it works; raises OSError.
    """
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', encoding="utf-8")
    source = random.Random(seed)  # noqa: S311 - content for tests, not a secret
    manifests = tuple(_manifest(blobs, each, layers, compress, source) for each in platforms or [host_platform()])
    target = manifests[0].descriptor if len(manifests) == 1 else _index(blobs, manifests)
    _enter(path, target, tags, annotations or {})
    return Image(path, target, manifests)


def pack_tar(layout: Path, target: Path) -> Path:
    """Pack the layout as ``ctr images import`` and ``skopeo copy oci-archive:`` take it; the archive's path."""
    with tarfile.open(target, "w") as archive:
        for name in ("oci-layout", "index.json", "blobs"):
            archive.add(layout / name, arcname=name)
    return target


def _manifest(blobs: Path, platform: str, sizes: Sequence[int], compress: bool, source: random.Random) -> Manifest:
    made = [write_layer(blobs, f"layer-{n}.bin", size, source, compress=compress) for n, size in enumerate(sizes)]
    config = {
        "created": "2024-01-01T00:00:00Z",
        **_platform_fields(platform),
        "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in made]},
        "history": [{"created": "2024-01-01T00:00:00Z", "created_by": f"layer {n}"} for n in range(len(made))],
    }
    layers = tuple(layer for layer, _ in made)
    config_descriptor = _put_json(blobs, OCI_CONFIG, config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _entry(config_descriptor),
        "layers": [_entry(layer) for layer in layers],
    }
    return Manifest(platform, _put_json(blobs, OCI_MANIFEST, manifest), config_descriptor, layers)


def _index(blobs: Path, manifests: Sequence[Manifest]) -> Descriptor:
    entries = [{**_entry(each.descriptor), "platform": _platform_fields(each.platform)} for each in manifests]
    return _put_json(blobs, OCI_INDEX, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})


def _platform_fields(platform: str) -> dict[str, str]:
    return dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))


def _put_json(blobs: Path, media_type: str, document: Mapping[str, Any]) -> Descriptor:
    with BlobWriter(blobs) as blob:
        blob.write(json.dumps(document, indent=2).encode())
    return Descriptor(media_type, blob.digest, blob.size)


def _entry(descriptor: Descriptor) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "digest": str(descriptor.digest), "size": descriptor.size}


def _enter(path: Path, target: Descriptor, tags: Sequence[str], annotations: Mapping[str, str]) -> None:
    """Make `target` known in the layout's ``index.json``."""
    index = path / "index.json"
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    if index.exists():
        document = json.loads(index.read_bytes())
    names = [_name(tag) for tag in tags] or [{}]
    kept = [each for each in document["manifests"] if not any(_same_name(each, name) for name in names if name)]
    added = [{**_entry(target), "annotations": {**annotations, **name}} for name in names]
    replacement = path / ".index.json.new"
    replacement.write_text(json.dumps({**document, "manifests": kept + added}, indent=2), encoding="utf-8")
    replacement.replace(index)


def _name(tag: str) -> dict[str, str]:
    if "/" not in tag:
        return {REF_NAME: tag}
    return {CONTAINERD_NAME: tag, REF_NAME: Reference.parse(tag).tag}


def _same_name(entry: Mapping[str, Any], name: Mapping[str, str]) -> bool:
    had: Mapping[str, str] = entry.get("annotations", {})
    return {key: had.get(key) for key in (REF_NAME, CONTAINERD_NAME)} == {
        key: name.get(key) for key in (REF_NAME, CONTAINERD_NAME)
    }
