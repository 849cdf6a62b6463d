"""Creates OCI images of random layers, which any runtime can import and unpack, and pulls them from a mirror."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import tarfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import httpx

from peili.mirror.errors import Aborted, NotFound
from peili.mirror.oci.children import host_platform
from peili.mirror.oci.references import OCI_INDEX, OCI_MANIFEST, Descriptor, Digest, Reference

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"

_PIECE = 1 << 20  # bytes of random data written at once


@dataclass(frozen=True, slots=True)
class Manifest:
    """The image of one platform.

    Attributes:
        platform: The platform, such as ``linux/amd64``.
        descriptor: The manifest itself.
        config: The config.
        layers: The layers, lowest first.
    """

    platform: str
    descriptor: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """The manifest itself, its config and its layers."""
        return (self.descriptor, self.config, *self.layers)


@dataclass(frozen=True, slots=True)
class Image:
    """An image in an OCI image layout.

    Attributes:
        path: The directory of the layout.
        target: What the tags point to: the index, or the only manifest.
        manifests: The manifest of each platform.
    """

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
        """All blobs of the image, each once, the target first."""
        every = [self.target, *(blob for manifest in self.manifests for blob in manifest.blobs)]
        return tuple({blob.digest: blob for blob in every}.values())

    def blob_path(self, digest: Digest) -> Path:
        """Return the path of a blob in the layout."""
        return self.path / "blobs" / digest.algorithm / digest.encoded


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
    """Write an image into an OCI image layout. Blocks.

    Args:
        path: The directory of the layout. It is created if it does not exist.
        layers: The size of each layer in bytes. A layer is a tar of one file with this number of random bytes. The
            blob is about 2 KiB larger.
        tags: Each tag becomes an entry of ``index.json``, and replaces an entry with the same name. A bare tag
            (``v1``) becomes the annotation ``org.opencontainers.image.ref.name``. Of a full reference
            (``docker.io/library/demo:v1``), the tag becomes that annotation, and the whole reference becomes
            ``io.containerd.image.name``. Without tags, the image has one entry without a name.
        annotations: More annotations for each entry.
        platforms: The platforms of the image; by default only this machine's. If there are several, the target is an
            index, and each platform has a manifest with its own layers.
        compress: Whether the layers are gzipped.
        seed: The same seed creates the same image. None creates a new image each time.

    Raises:
        OSError: The layout can't be written.
    """
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', encoding="utf-8")
    source = random.Random(seed)  # noqa: S311 - content for tests, not a secret
    manifests = tuple(_manifest(blobs, each, layers, compress, source) for each in platforms or [host_platform()])
    target = manifests[0].descriptor if len(manifests) == 1 else _index(blobs, manifests)
    _add_to_index(path, target, tags, annotations or {})
    return Image(path, target, manifests)


def pack_tar(layout: Path, target: Path) -> Path:
    """Pack a layout into a tar for ``ctr images import`` and ``skopeo copy oci-archive:``.

    Args:
        layout: The directory of the layout.
        target: The path of the tar.

    Returns:
        The path of the tar.
    """
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


def _add_to_index(path: Path, target: Descriptor, tags: Sequence[str], annotations: Mapping[str, str]) -> None:
    """Add entries for `target` to the layout's ``index.json``."""
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
    annotations: Mapping[str, str] = entry.get("annotations", {})
    return {key: annotations.get(key) for key in (REF_NAME, CONTAINERD_NAME)} == {
        key: name.get(key) for key in (REF_NAME, CONTAINERD_NAME)
    }


class _Writable(Protocol):
    def write(self, data: bytes, /) -> object: ...


class BlobWriter:
    """A context manager that writes a blob into the directory `blobs`, and names the file by its digest on exit."""

    def __init__(self, blobs: Path) -> None:
        self._blobs = blobs
        self._unfinished = blobs / f".{uuid.uuid4().hex}"
        self._file = self._unfinished.open("xb")
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> Digest:
        """The digest of the bytes written so far."""
        return Digest(f"sha256:{self._hash.hexdigest()}")

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self._unfinished.replace(self._blobs / self.digest.encoded)
        else:
            self._unfinished.unlink()


def write_layer(blobs: Path, name: str, size: int, source: random.Random, *, compress: bool) -> tuple[Descriptor, str]:
    """Write a layer: a tar of one file with random bytes.

    Args:
        blobs: The directory for the blob.
        name: The name of the file in the tar.
        size: The size of that file in bytes.
        source: The source of the bytes.
        compress: Whether to gzip the tar.

    Returns:
        The layer, and its diff id, which is the digest of the tar without compression (OCI image spec, "Layer DiffID").
    """
    with BlobWriter(blobs) as blob:
        if compress:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=blob, mtime=0) as zipped:
                diff_id = _write_tar(zipped, name, size, source)
        else:
            diff_id = _write_tar(blob, name, size, source)
    return Descriptor(OCI_LAYER + ("+gzip" if compress else ""), blob.digest, blob.size), diff_id


def _write_tar(to: _Writable, name: str, size: int, source: random.Random) -> str:
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    diff_id = hashlib.sha256()

    def write(data: bytes) -> None:
        diff_id.update(data)
        to.write(data)

    write(header.tobuf(tarfile.PAX_FORMAT))
    for start in range(0, size, _PIECE):
        write(source.randbytes(min(_PIECE, size - start)))
    write(bytes(-size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE))
    return f"sha256:{diff_id.hexdigest()}"


async def pull(runtime: httpx.AsyncClient, image: Image, repository: str, *, prefix: str = "/v2") -> int:
    """Pull all blobs of `image` by digest, as a runtime does, and check each digest.

    Args:
        runtime: A client whose base URL is that of the app in which the local door is mounted.
        image: The image to pull.
        repository: The full name of the repository, such as ``docker.io/library/redis``.
        prefix: The path from the base URL to the registry API.

    Returns:
        The number of bytes of all blobs.

    Raises:
        NotFound: The answer was not 200, so a runtime would go upstream.
        Aborted: The content did not match its digest.
        httpx.HTTPError: The request failed.
    """
    registry, _, name = repository.partition("/")
    size = 0
    for each in _in_pull_order(image):
        kind = "manifests" if each in _manifests(image) else "blobs"
        answer = await runtime.get(f"{prefix}/{name}/{kind}/{each.digest}", params={"ns": registry})
        if answer.status_code != 200:
            raise NotFound(f"{each.digest}: the answer was {answer.status_code}: {answer.text}")
        if Digest.of(answer.content) != each.digest:
            raise Aborted(f"{each.digest}: the {len(answer.content)} bytes received do not match the digest")
        size += len(answer.content)
    return size


def _manifests(image: Image) -> tuple[Descriptor, ...]:
    return (image.target, *(each.descriptor for each in image.manifests if each.descriptor != image.target))


def _in_pull_order(image: Image) -> list[Descriptor]:
    """Return all blobs, each once, in the order in which a runtime pulls them."""
    blobs = (each for manifest in image.manifests for each in (manifest.config, *manifest.layers))
    return list({each.digest: each for each in (*_manifests(image), *blobs)}.values())
