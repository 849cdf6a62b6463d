"""Looks at an OCI image layout on disk and says what is in it. Everything here blocks: it is called in a thread.

Layouts may come from strangers. Only regular files are read, no symbolic link below the layout's own path is
followed, sizes are bounded, and what makes no sense is left out.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
    Stamp,
    blob_files,
    blob_name,
    directory,
    read_blob,
    read_index,
    stamp,
)
from peili.stores.oci_layout.json import children_of, entries_of, tag_of

_MAX_MANIFESTS = 10_000
_SETTLED = 1.0  # seconds since the last write after which a blob that no descriptor speaks of is taken for whole
_FRESH = 2.0  # seconds in which another change may still bear the same time stamp, whatever the file system


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a layout has: the size of each blob, what each tag stands for, the media type of each known manifest."""

    blobs: Mapping[Digest, int] = field(default_factory=dict[Digest, int])
    tags: Mapping[Reference, Descriptor] = field(default_factory=dict[Reference, Descriptor])
    media_types: Mapping[Digest, str] = field(default_factory=dict[Digest, str])


@dataclass(frozen=True, slots=True)
class _Manifest:
    file: BlobFile
    media_type: str
    children: tuple[Descriptor, ...]


class Scanner:
    """Looks at the layout at `path`, again and again. Not for use by two threads at once.

    Tags are the names that the entries of ``index.json`` bear (OCI image spec, "Image layout": only there they
    count; a nested index is the word of whoever published the image). `repository`, as in
    ``docker.io/library/redis``, makes bare tags into references.
    """

    def __init__(self, path: Path, repository: str | None, log: logging.Logger) -> None:
        self._path = path
        self._repository = repository
        self._log = log
        self._seen: dict[str, Stamp | None] = {}  # what it looked like when there was nothing left to learn
        self._index_seen: Stamp | None = None
        self._index: tuple[Descriptor, ...] | None = None
        self._manifests: dict[Digest, _Manifest] = {}
        self._left_out: dict[Digest, BlobFile] = {}  # there, but not (yet) what it has to be

    def look(self) -> Snapshot | None:
        """What there is now; None: nothing changed since. Raises StoreUnavailable where there is no layout."""
        try:
            with directory(self._path) as root:
                return self._look(root)
        except OSError as error:
            raise StoreUnavailable(f"{self._path}: {error.strerror}") from error

    def _look(self, root: int) -> Snapshot | None:
        names = ("index.json", *(f"blobs/{each}" for each in ALGORITHMS), *map(blob_name, self._left_out))
        seen = {name: stamp(root, name) for name in names}
        if seen == self._seen:
            return None
        self._refresh_index(root, seen["index.json"])
        if self._index is None:
            raise StoreUnavailable(f"{self._path}: index.json is malformed")
        snapshot = self._take(root, self._index, blob_files(root))
        times = [each.mtime_ns for each in (*seen.values(), *self._left_out.values()) if each is not None]
        self._seen = {} if any(_younger(each, _FRESH) for each in times) else seen
        return snapshot

    def _refresh_index(self, root: int, now: Stamp | None) -> None:
        """Read ``index.json`` where it changed. One that is malformed is named once; what it said before counts."""
        if now is None:
            self._index_seen = None
            raise StoreUnavailable(f"{self._path}: there is no index.json, so this is no OCI image layout")
        if now == self._index_seen:
            return
        try:
            self._index = entries_of(read_index(root))
        except (ValueError, NotFound) as error:
            self._log.warning("%s: index.json is left aside, it is malformed: %s", self._path, error)
        self._index_seen = now

    def _take(self, root: int, index: tuple[Descriptor, ...], files: Mapping[Digest, BlobFile]) -> Snapshot:
        sizes = self._walk(root, index, files)
        whole = {digest: file.size for digest, file in files.items() if _is_whole(file, sizes.get(digest))}
        self._left_out = {digest: file for digest, file in files.items() if digest not in whole}
        media_types = {digest: each.media_type for digest, each in self._manifests.items()}
        tags: dict[Reference, Descriptor] = {}
        for entry in index:
            tag = tag_of(entry.annotations, self._repository)
            if tag is not None and entry.digest in whole:
                media_type = media_types.get(entry.digest, entry.media_type)
                tags[tag] = Descriptor(media_type, entry.digest, whole[entry.digest])
        return Snapshot(whole, tags, media_types)

    def _walk(
        self, root: int, index: Iterable[Descriptor], files: Mapping[Digest, BlobFile]
    ) -> Mapping[Digest, set[int]]:
        """Read all manifests that `index` leads to; the sizes that descriptors give, by digest."""
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
                manifest = _read_manifest(root, entry.digest, file)
            self._manifests[entry.digest] = manifest
            queue.extend(manifest.children)
        return sizes


def _read_manifest(root: int, digest: Digest, file: BlobFile) -> _Manifest:
    try:
        data = read_blob(root, digest)
        return _Manifest(file, detect_media_type(data), children_of(data))
    except (ValueError, NotFound, StoreUnavailable):
        return _Manifest(file, OCTET_STREAM, ())  # not a manifest after all, or not to be had


def _is_whole(file: BlobFile, sizes: set[int] | None) -> bool:
    """Whether a blob may be announced. One that is being copied in is there, under its name, before it is whole."""
    if sizes is not None:
        return file.size in sizes
    return not _younger(file.mtime_ns, _SETTLED)


def _younger(mtime_ns: int, seconds: float) -> bool:
    return 0 <= time.time_ns() - mtime_ns < seconds * 1e9
