"""Opens the content of complete blobs, from containerd's files or through its API, and of ingests from their files.

An *ingest* is containerd's word for a blob that a client is still writing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from enum import Enum
from functools import partial
from pathlib import Path

from typing_extensions import override

from peili.mirror import (
    Aborted,
    Content,
    Digest,
    GrowingFileContent,
    NotFound,
    PeiliError,
    StoreUnavailable,
    open_below,
    open_in_thread,
)
from peili.stores.containerd.api import ContainerdApi
from peili.stores.containerd.listing import Blob

_MAX_READ = 1 << 20  # bytes of one read through the API
_MAX_FIELD = 4096  # bytes of the file `ref` or `total` of an ingest


def blob_path(root: Path, digest: Digest) -> Path:
    """Return the path of a complete blob in the content store at `root`."""
    return root / "blobs" / digest.algorithm / digest.encoded


class Access(Enum):
    """Whether this process can read the directory of a content store."""

    READABLE = "readable"
    """It can be read, or has no blob yet."""
    ABSENT = "absent"
    """The path does not exist: containerd ≥ 1.7 creates it with the first blob, or it is not mounted here."""
    REFUSED = "refused"
    """The path exists, but this process can't read it."""


def access_to(root: Path) -> Access:
    """Return whether this process can read the content store at `root`, judged from its directories. Never raises."""
    for path in (root, root / "blobs", root / "blobs" / "sha256"):
        try:
            path.stat()
        except FileNotFoundError:
            return Access.ABSENT if path == root else Access.READABLE  # a new store has no directories of blobs yet
        except OSError:
            return Access.REFUSED
        if not path.is_dir() or not os.access(path, os.R_OK | os.X_OK):
            return Access.REFUSED
    return Access.READABLE


def is_absent(root: Path | None, digest: Digest) -> bool:
    """Return whether the content store at `root` certainly lacks the complete blob `digest`. Never raises.

    containerd moves a blob's file to its path before it announces the blob. So if there is no file, no namespace has
    the blob. If there is a file, only containerd knows which namespaces have it. This blocks for one call of ``stat``,
    because the content store is on a local disk, and a thread would cost more.
    """
    if root is None:
        return False
    try:
        blob_path(root, digest).stat()
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


class ApiContent(Content):
    """A complete blob, read through containerd's API. This is slower than reading its file, and has no descriptor."""

    def __init__(self, api: ContainerdApi, digest: Digest, blob: Blob) -> None:
        self._api = api
        self._digest = digest
        self._namespace = blob.namespace
        self.size = self.available = blob.size
        self.complete = True

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        wanted = min(len(buffer), self.available - offset, _MAX_READ)
        if wanted <= 0:
            return 0  # containerd would take a size of 0 as "to the end"
        read = 0
        try:
            async for piece in self._api.read(self._namespace, self._digest, offset, wanted):
                buffer[read : read + len(piece)] = piece
                read += len(piece)
        except NotFound as error:
            raise Aborted(f"{self._digest} was removed while it was read") from error
        if not read:
            raise Aborted(f"containerd has fewer bytes of {self._digest} than it reported")
        return read

    @override
    async def wait(self, past: int) -> int:
        return self.available

    @override
    async def aclose(self) -> None:
        """Do nothing: no resource is held between reads."""


async def open_ingest(
    root: Path,
    namespaces: Collection[str],
    digest: Digest,
    *,
    is_given_up: Callable[[Path], bool],
    expect_open: Callable[[Path], None],
) -> Content:
    """Open the ingest of a blob.

    Args:
        root: The directory of the content store.
        namespaces: Only ingests in these namespaces count.
        digest: The digest of the blob.
        is_given_up: Returns whether the ingest with this directory has lost its writer. It then does not count.
        expect_open: Called with the directory of an ingest before its file is opened.

    Raises:
        NotFound: There is no such ingest.
    """
    for path in await asyncio.to_thread(_find_ingests, root, namespaces, digest):
        if is_given_up(path):
            continue
        with suppress(NotFound, StoreUnavailable):
            expect_open(path)
            opener = partial(open_below, root, path.relative_to(root) / "data")
            fd = await open_in_thread(opener, os.close)
            total = await asyncio.to_thread(_read_total, root, path)
            return GrowingFileContent(fd, blob_path(root, digest), total, is_given_up=partial(is_given_up, path))
    raise NotFound(f"there is no ingest of {digest}")


def is_ref_of(ref: str, digest: Digest) -> bool:
    """Return whether `ref` is one that a pull uses for `digest`, such as ``layer-sha256:…`` or ``manifest-sha256:…``.

    The files of an ingest prefix it with the namespace and a sequence number, which the caller removes.
    """
    return ref.endswith(digest)


def read_field(root: Path, ingest: Path, name: str) -> bytes:
    """Return the content of the file ``ref`` or ``total`` of an ingest in the content store at `root`. Blocks.

    No symbolic link below `root` is followed.

    Raises:
        NotFound, StoreUnavailable: It can't be opened.
        OSError: It can't be read.
    """
    with open(open_below(root, ingest.relative_to(root) / name), "rb") as file:  # noqa: PTH123 - a descriptor
        return file.read(_MAX_FIELD)


def _find_ingests(root: Path, namespaces: Collection[str], digest: Digest) -> list[Path]:
    """Return the directories of the ingests of `digest`, the most recently written first. Blocks."""
    found: list[tuple[float, Path]] = []
    try:
        ingests = list((root / "ingest").iterdir())
    except OSError:
        return []
    for path in ingests:
        with suppress(PeiliError, OSError, ValueError):  # it has ended meanwhile, or is not an ingest
            namespace, _, ref = read_field(root, path, "ref").decode().split("/", 2)
            if namespace in namespaces and is_ref_of(ref, digest):
                found.append(((path / "data").lstat().st_mtime, path))
    return [path for _, path in sorted(found, key=lambda each: each[0], reverse=True)]


def _read_total(root: Path, ingest: Path) -> int | None:
    try:
        return int(read_field(root, ingest, "total")) or None
    except (PeiliError, OSError, ValueError):
        return None
