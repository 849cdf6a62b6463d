"""Blobs that are still arriving: finding their files in a content store's ``ingest`` directory, and following them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from peili.mirror import Aborted, Digest, NotFound, StoreUnavailable
from peili.mirror.content.files import FileContent, open_regular
from peili.stores.containerd.content import blob_path

POLL = 0.025
"""Seconds between two looks at a file that grows. containerd writes pieces of 1 MiB."""


@dataclass(frozen=True, slots=True)
class Ingest:
    """An unfinished blob in a content store: its directory, and its size in bytes where that is known."""

    path: Path
    total: int | None


async def open_ingest(root: Path, namespaces: Collection[str], digest: Digest) -> IngestContent:
    """Open what is arriving of `digest` in one of `namespaces`. Raises NotFound where nothing is."""
    opening = asyncio.get_running_loop().run_in_executor(None, _open, root, namespaces, digest)
    try:
        fd, ingest = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_opened)  # the thread goes on, and nobody else would own what it opens
        raise
    return IngestContent(fd, blob_path(root, digest), ingest.total)


def _open(root: Path, namespaces: Collection[str], digest: Digest) -> tuple[int, Ingest]:
    """A descriptor of the unfinished blob's file, for the caller to own. Raises NotFound. Blocks."""
    for ingest in find_ingests(root, namespaces, digest):
        with suppress(NotFound, StoreUnavailable):
            return open_regular(ingest.path / "data"), ingest
    raise NotFound(f"{digest} is not arriving")


def _close_opened(opening: asyncio.Future[tuple[int, Ingest]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result()[0])


def find_ingests(root: Path, namespaces: Collection[str], digest: Digest) -> list[Ingest]:
    """The unfinished blobs of `digest`, the one that was written to last first. Blocks."""
    found: list[tuple[float, Ingest]] = []
    for path in _directories(root / "ingest"):
        with suppress(OSError, ValueError):  # it ended meanwhile, or is not one
            namespace, _, key = (path / "ref").read_text(encoding="utf-8").split("/", 2)
            if namespace in namespaces and is_ref_of(key, digest):
                found.append(((path / "data").stat().st_mtime, Ingest(path, _total(path))))
    return [ingest for _, ingest in sorted(found, key=lambda each: each[0], reverse=True)]


def is_ref_of(key: str, digest: Digest) -> bool:
    """Whether `key`, a ref without namespace and sequence number, is one that pulls use for `digest`."""
    return key.endswith(digest)


def _directories(path: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from path.iterdir()


def _total(ingest: Path) -> int | None:
    try:
        return int((ingest / "total").read_text(encoding="ascii")) or None
    except (OSError, ValueError):
        return None


class IngestContent(FileContent):
    """The file of an unfinished blob, owned from here on, and followed until `blob` is that file.

    A file that gets shorter, or is removed without having become the blob, is `Aborted`. One that was started anew
    and has overtaken its old length between two looks is not noticed: the digest has to be checked in any case.
    """

    def __init__(self, fd: int, blob: Path, total: int | None) -> None:
        super().__init__(fd)
        self.size = total
        self.complete = False
        self._blob = blob

    @override
    async def wait(self, past: int) -> int:
        while not self.complete:
            self._look()
            if self.available > past:
                break
            await asyncio.sleep(POLL)
        return self.available

    @override
    def _check(self, read: int) -> None:
        if not read or os.fstat(self._fd).st_size < self.available:
            raise Aborted("what had arrived was discarded")

    def _look(self) -> None:
        if self._closed:
            raise ValueError("the content is closed")
        committed = self._is_committed()  # before its size is taken: from then on it doesn't grow
        now = os.fstat(self._fd)
        if now.st_size < self.available:
            raise Aborted("what had arrived was discarded, and is fetched anew")
        if not committed and not now.st_nlink:
            raise Aborted("what was arriving was given up")
        self.available = self._size = now.st_size
        if committed:
            self.size, self.complete = now.st_size, True

    def _is_committed(self) -> bool:
        try:
            return os.path.samestat(self._blob.stat(), os.fstat(self._fd))
        except OSError:
            return False
