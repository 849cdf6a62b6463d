"""A store that serves an image archive, for hosts that receive their images on a USB stick."""

import asyncio
import logging
import os
import tarfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from peili.mirror import (
    Content,
    Context,
    Descriptor,
    Digest,
    FileContent,
    Have,
    Inventory,
    NotFound,
    Options,
    Reference,
    Store,
    StoreEvent,
    StoreUnavailable,
)
from peili_harbour.archive import Archive

K = TypeVar("K")
V = TypeVar("V")


class ArchiveContent(Content):
    """A part of an open archive: `size` bytes from `start` on."""

    def __init__(self, archive: FileContent, start: int, size: int) -> None:
        self._archive = archive
        self._start = start
        self.size = self.available = size
        self.complete = True

    async def readinto(self, offset: int, buffer: memoryview) -> int:
        wanted = max(0, min(len(buffer), self.available - offset))
        return await self._archive.readinto(self._start + offset, buffer[:wanted])

    async def wait(self, past: int) -> int:
        return self.available

    async def aclose(self) -> None:
        await self._archive.aclose()


class ArchiveStore(Store):
    """Serves the archive at `path`. The file may appear, disappear or be replaced: the store looks every 250 ms."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inventory = Inventory()
        self._entered = False
        self._archive: Archive | None = None  # None: it can't be read
        self._stamp: tuple[int, ...] | None = None  # of the file from which `_archive` was read

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls(Options(config, "path").path("path", expected='an image archive, such as "/media/stick/images.tar"'))

    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        if self._entered:
            raise RuntimeError("this store is running already; each mirror needs its own")
        self._entered = True
        task = asyncio.create_task(self._follow(context.log))
        try:
            yield
        finally:
            task.cancel()
            self._entered = False
            self._archive = self._stamp = None
            self._inventory.synced = False
            await asyncio.wait([task])

    def ready(self) -> bool:
        return self._archive is not None

    async def resolve(self, reference: Reference) -> Descriptor:
        return _found(self._readable().tags, reference)

    async def describe(self, digest: Digest) -> Descriptor:
        return _found(self._readable().blobs, digest)

    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        archive = self._readable()
        start, size = _found(archive.offsets, digest), archive.blobs[digest].size
        content = await FileContent.open(self._path, frozen=True)
        fd = content.fileno()
        if fd is None or _stamp(os.fstat(fd)) != self._stamp:
            await content.aclose()
            raise StoreUnavailable(f"{self._path} is being replaced")
        return ArchiveContent(content, start, size)

    def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        return self._inventory.watch()

    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        return sorted(self._readable().tags.items(), key=lambda item: item[0])

    def _readable(self) -> Archive:
        if self._archive is None:
            raise StoreUnavailable(f"{self._path} can't be read")
        return self._archive

    async def _follow(self, log: logging.Logger) -> None:
        problem = ""
        while True:
            try:
                await self._refresh()
                problem = ""
            except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
                self._archive = self._stamp = None
                if str(error) != problem:
                    problem = str(error)
                    log.warning("waiting for %s: %s", self._path, problem)
            await asyncio.sleep(0.25)

    async def _refresh(self) -> None:
        stamp = _stamp(await asyncio.to_thread(self._path.stat))
        if stamp != self._stamp:
            archive = await asyncio.to_thread(Archive.read, self._path)
            self._archive, self._stamp = archive, stamp
            sizes = [Have(digest, blob.size) for digest, blob in archive.blobs.items()]
            tags = [Have(tag, target=meaning.digest) for tag, meaning in archive.tags.items()]
            self._inventory.replace([*sizes, *tags])


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _found(table: Mapping[K, V], key: K) -> V:
    try:
        return table[key]
    except KeyError:
        raise NotFound(f"{key} is not in the archive") from None
