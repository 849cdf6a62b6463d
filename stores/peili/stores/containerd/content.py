"""Whole blobs: where a content store keeps them as files, and how they are read where the files can't be."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

from typing_extensions import override

from peili.mirror import Aborted, Content, Digest, NotFound
from peili.mirror.limits import MIB
from peili.stores.containerd.api import Api
from peili.stores.containerd.listing import Blob


def blob_path(root: Path, digest: Digest) -> Path:
    """Where the content store in `root` keeps a whole blob."""
    return root / "blobs" / digest.algorithm / digest.encoded


class Access(Enum):
    """Whether this process may use a content store's directory."""

    READABLE = "readable"
    ABSENT = "absent"
    """Nothing is at that path: containerd 1.7 and later make it with their first blob; or it is not mounted here."""
    REFUSED = "refused"


def access_to(root: Path) -> Access:
    """What this process may do in the content store in `root`, so far as its directories tell. Never raises."""
    for path in (root, root / "blobs", root / "blobs" / "sha256"):
        try:
            path.stat()
        except FileNotFoundError:
            return Access.ABSENT if path == root else Access.READABLE  # a new one has no directories of blobs yet
        except OSError:
            return Access.REFUSED
        if not path.is_dir() or not os.access(path, os.R_OK | os.X_OK):
            return Access.REFUSED
    return Access.READABLE


def is_readable(root: Path) -> bool:
    """Whether this process may use the content store in `root`, so far as its directories tell. Never raises."""
    return access_to(root) is Access.READABLE


def is_absent(root: Path | None, digest: Digest) -> bool:
    """Whether the content store in `root` certainly has no whole blob `digest`, in no namespace. Never raises.

    containerd moves a blob's file to its place before it tells of the blob, so where there is no file, there is nothing
    to ask about. Where there is one, only containerd knows which namespaces show it. One call of stat, on the loop: the
    content store is on a local disk, and a thread would cost more.
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
    """A whole blob, read through containerd's API: slower than its file, and without a descriptor."""

    def __init__(self, api: Api, digest: Digest, blob: Blob) -> None:
        self._api = api
        self._digest = digest
        self._namespace = blob.namespace
        self.size = self.available = blob.size
        self.complete = True

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        wanted = min(len(buffer), self.available - offset, MIB)
        if wanted <= 0:
            return 0  # to containerd, a size of 0 means all there is
        read = 0
        try:
            async for piece in self._api.read(self._namespace, self._digest, offset, wanted):
                buffer[read : read + len(piece)] = piece
                read += len(piece)
        except NotFound as error:
            raise Aborted(f"{self._digest} was removed while it was read") from error
        if not read:
            raise Aborted(f"containerd has less of {self._digest} than it said")
        return read

    @override
    async def wait(self, past: int) -> int:
        return self.available

    @override
    async def aclose(self) -> None:
        """Nothing is held."""
