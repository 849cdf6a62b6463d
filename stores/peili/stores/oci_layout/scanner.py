"""Scans an OCI image layout for its blobs and tags. A scan blocks, so the store runs it in a thread.

A layout may be hostile: malformed manifests, descriptors and tags are left out.
"""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from peili.mirror import (
    OCTET_STREAM,
    Descriptor,
    Digest,
    NotFound,
    Reference,
    StoreUnavailable,
    detect_media_type,
    is_manifest,
)
from peili.stores.oci_layout.files import (
    ALGORITHMS,
    BlobFile,
    FileStamp,
    IngestFile,
    blob_name,
    list_blobs,
    list_ingests,
    open_directory,
    read_index,
    read_manifest_below,
    stamp_at,
)

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"

_MAX_MANIFESTS = 10_000
_QUIET_SECONDS = 1.0  # after the last write, a blob that no descriptor mentions counts as complete
_TIMESTAMP_SECONDS = 2.0  # within these, another change may have the same timestamp, whatever the file system


@dataclass(frozen=True, slots=True)
class LayoutSnapshot:
    """The result of a scan.

    Attributes:
        blobs: The size of each complete blob.
        tags: The target of each tag.
        media_types: The media type of each manifest.
        ingests: The blobs that are still being written.
    """

    blobs: Mapping[Digest, int] = field(default_factory=dict[Digest, int])
    tags: Mapping[Reference, Descriptor] = field(default_factory=dict[Reference, Descriptor])
    media_types: Mapping[Digest, str] = field(default_factory=dict[Digest, str])
    ingests: Mapping[Digest, IngestFile] = field(default_factory=dict[Digest, IngestFile])


@dataclass(frozen=True, slots=True)
class _ParsedManifest:
    file: BlobFile
    media_type: str
    children: tuple[Descriptor, ...]


class LayoutScanner:
    """Scans one layout repeatedly. Not for use by two threads at once.

    Only the entries of ``index.json`` name tags (OCI image spec, "Image layout"). The names in a nested index come from
    the publisher of the image, so they are ignored.

    Args:
        path: The directory of the layout.
        repository: The full name, such as ``docker.io/library/redis``, to which bare tags belong; None ignores them.
        log: Receives a warning about a malformed ``index.json``.
    """

    def __init__(self, path: Path, repository: str | None, log: logging.Logger) -> None:
        self._path = path
        self._repository = repository
        self._log = log
        self._stamps: dict[str, FileStamp | None] = {}  # of a scan after which there was nothing left to find out
        self._index_stamp: FileStamp | None = None
        self._index: tuple[Descriptor, ...] | None = None
        self._manifests: dict[Digest, _ParsedManifest] = {}
        self._incomplete: dict[Digest, BlobFile] = {}  # files that are not complete blobs, or not yet
        self._snapshot = LayoutSnapshot()
        self._ingest_sizes: dict[Digest, int] = {}  # of ingests, also of those that have become blobs

    def scan(self) -> LayoutSnapshot | None:
        """Return what the layout has now; None if nothing has changed.

        Raises:
            StoreUnavailable: There is no layout, or it can't be read.
        """
        try:
            with open_directory(self._path) as root:
                return self._scan(root)
        except OSError as error:
            raise StoreUnavailable(f"{self._path}: {error.strerror}") from error

    def _scan(self, root: int) -> LayoutSnapshot | None:
        names = ("index.json", *(f"blobs/{each}" for each in ALGORITHMS), *map(blob_name, self._incomplete))
        ingests = list_ingests(root)  # before the blobs, so that one which becomes a blob now is not missed
        self._ingest_sizes.update((digest, ingest.total) for digest, ingest in ingests.items())
        stamps = {name: stamp_at(root, name) for name in names}
        if stamps == self._stamps:
            if ingests == self._snapshot.ingests:
                return None
            self._snapshot = replace(self._snapshot, ingests=ingests)
            return self._snapshot
        self._refresh_index(root, stamps["index.json"])
        if self._index is None:
            raise StoreUnavailable(f"{self._path}: index.json is malformed")
        files = list_blobs(root)
        self._ingest_sizes = {
            each: size for each, size in self._ingest_sizes.items() if each in files or each in ingests
        }
        self._snapshot = replace(self._take_snapshot(root, self._index, files), ingests=ingests)
        times = [each.mtime_ns for each in (*stamps.values(), *self._incomplete.values()) if each is not None]
        self._stamps = {} if any(_is_younger(each, _TIMESTAMP_SECONDS) for each in times) else stamps
        return self._snapshot

    def _refresh_index(self, root: int, stamp: FileStamp | None) -> None:
        """Read ``index.json`` if it has changed. If it is malformed, log this once and keep the last good one."""
        if stamp is None:
            self._index_stamp = None
            raise StoreUnavailable(f"{self._path}: there is no index.json, so this is no OCI image layout")
        if stamp == self._index_stamp:
            return
        try:
            self._index = parse_index(read_index(root))
        except (ValueError, NotFound) as error:
            self._log.warning("%s: index.json is ignored, it is malformed: %s", self._path, error)
        self._index_stamp = stamp

    def _take_snapshot(
        self, root: int, index: tuple[Descriptor, ...], files: Mapping[Digest, BlobFile]
    ) -> LayoutSnapshot:
        sizes = self._read_manifests(root, index, files)
        for digest, size in self._ingest_sizes.items():
            sizes[digest].add(size)
        complete = {digest: file.size for digest, file in files.items() if _is_complete(file, sizes.get(digest))}
        self._incomplete = {digest: file for digest, file in files.items() if digest not in complete}
        media_types = {digest: each.media_type for digest, each in self._manifests.items()}
        tags: dict[Reference, Descriptor] = {}
        for entry in index:
            tag = parse_tag(entry.annotations, self._repository)
            if tag is not None and entry.digest in complete:
                media_type = media_types.get(entry.digest, entry.media_type)
                tags[tag] = Descriptor(media_type, entry.digest, complete[entry.digest])
        return LayoutSnapshot(complete, tags, media_types)

    def _read_manifests(
        self, root: int, index: Iterable[Descriptor], files: Mapping[Digest, BlobFile]
    ) -> defaultdict[Digest, set[int]]:
        """Read all manifests that `index` refers to. Returns the sizes that their descriptors state, by digest."""
        sizes: defaultdict[Digest, set[int]] = defaultdict(set)
        known, self._manifests = self._manifests, {}
        queue = deque(index)
        while queue and len(self._manifests) < _MAX_MANIFESTS:
            entry = queue.popleft()
            sizes[entry.digest].add(entry.size)
            file = files.get(entry.digest)
            if file is None or entry.digest in self._manifests or not is_manifest(entry.media_type):
                continue
            manifest = known.get(entry.digest)
            if manifest is None or manifest.file != file:
                try:
                    data = read_manifest_below(root, entry.digest)
                    manifest = _ParsedManifest(file, detect_media_type(data), parse_manifest(data))
                except (ValueError, NotFound, StoreUnavailable):
                    manifest = _ParsedManifest(file, OCTET_STREAM, ())  # it is not a manifest, or can't be read
            self._manifests[entry.digest] = manifest
            queue.extend(manifest.children)
        return sizes


def _is_complete(file: BlobFile, sizes: set[int] | None) -> bool:
    """Return whether a blob can be announced. A blob that is being copied has its name before it is complete."""
    if sizes is not None:
        return file.size in sizes
    return not _is_younger(file.mtime_ns, _QUIET_SECONDS)


def _is_younger(mtime_ns: int, seconds: float) -> bool:
    return 0 <= time.time_ns() - mtime_ns < seconds * 1e9


def parse_index(index: bytes) -> tuple[Descriptor, ...]:
    """Return the descriptors in an ``index.json``. Raises ValueError if it is malformed."""
    document = _parse_object(index)
    if not isinstance(document.get("manifests"), list):
        raise ValueError("it has no list of manifests")  # noqa: TRY004 - the input is wrong, not the caller
    return tuple(_descriptors_in(document, ("manifests",)))


def parse_manifest(manifest: bytes) -> tuple[Descriptor, ...]:
    """Return the descriptors in a manifest or index of any kind. Raises ValueError if it is malformed."""
    return tuple(_descriptors_in(_parse_object(manifest), ("manifests", "layers", "blobs", "config", "subject")))


def parse_tag(annotations: Mapping[str, str], repository: str | None) -> Reference | None:
    """Return the tag that the annotations of an entry of ``index.json`` name, if any.

    A full reference is used as it is; containerd's annotation comes first. A bare tag belongs to `repository`.
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


def _parse_object(data: bytes) -> dict[str, object]:
    try:
        document: object = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - the input is wrong, not the caller
    return cast("dict[str, object]", document)


def _descriptors_in(document: Mapping[str, object], fields: Collection[str]) -> Iterator[Descriptor]:
    for name in fields:
        value = document.get(name)
        for each in cast("list[object]", value) if isinstance(value, list) else [value]:
            if isinstance(each, dict) and (found := _parse_descriptor(cast("dict[str, Any]", each))):
                yield found


def _parse_descriptor(entry: Mapping[str, Any]) -> Descriptor | None:
    media_type, digest, size = entry.get("mediaType"), entry.get("digest"), entry.get("size")
    if not isinstance(digest, str) or not isinstance(size, int) or isinstance(size, bool):
        return None
    annotations = entry.get("annotations")
    if not isinstance(annotations, dict):
        annotations = {}
    texts = {key: value for key, value in cast("dict[str, Any]", annotations).items() if isinstance(value, str)}
    try:
        return Descriptor(media_type if isinstance(media_type, str) else "", Digest(digest), size, texts)
    except ValueError:
        return None
