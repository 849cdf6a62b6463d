"""A store over an image archive, for hosts that got their images on a stick."""

import asyncio
import logging
import os
import tarfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from peili.mirror import (
    ConfigError,
    Content,
    Context,
    Descriptor,
    Digest,
    FileContent,
    Have,
    Inventory,
    NotFound,
    Reference,
    Store,
    StoreEvent,
    StoreUnavailable,
)
from peili_harbour.archive import Archive

K = TypeVar("K")
V = TypeVar("V")


class ArchiveContent(Content):
    """`size` bytes of an open archive, from `start` on."""

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
    """What the archive at `path` has. It may come later, go, or be replaced by another; that is noticed in a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inventory = Inventory()
        self._entered = False
        self._archive: Archive | None = None  # None: away
        self._stamp: tuple[int, ...] | None = None  # of the file that `_archive` was read from

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        for key in config.keys() - {"path"}:
            raise ConfigError(key, "unknown option; archive has: path")
        path = config.get("path")
        if not isinstance(path, str) or not path:
            raise ConfigError("path", 'an OCI image archive, such as "/media/stick/images.tar"')
        return cls(Path(path))

    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        if self._entered:
            raise RuntimeError("this store is running already; each mirror needs one of its own")
        self._entered = True
        following = asyncio.create_task(self._follow(context.log))
        try:
            yield
        finally:
            following.cancel()
            self._entered = False
            self._archive = self._stamp = None
            self._inventory.synced = False
            await asyncio.wait([following])

    def ready(self) -> bool:
        return self._archive is not None

    async def resolve(self, reference: Reference) -> Descriptor:
        return _found(self._there().tags, reference)

    async def describe(self, digest: Digest) -> Descriptor:
        return _found(self._there().blobs, digest)

    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        archive = self._there()
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
        return sorted(self._there().tags.items(), key=lambda item: item[0])

    def _there(self) -> Archive:
        if self._archive is None:
            raise StoreUnavailable(f"{self._path} can't be read")
        return self._archive

    async def _follow(self, log: logging.Logger) -> None:
        problem = ""
        while True:
            try:
                await self._look()
                problem = ""
            except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
                self._archive = self._stamp = None
                if str(error) != problem:
                    problem = str(error)
                    log.warning("%s is waited for: %s", self._path, problem)
            await asyncio.sleep(0.25)

    async def _look(self) -> None:
        stamp = _stamp(await asyncio.to_thread(self._path.stat))
        if stamp != self._stamp:
            archive = await asyncio.to_thread(Archive.read, self._path)
            self._archive, self._stamp = archive, stamp
            sizes = [Have(digest, blob.size) for digest, blob in archive.blobs.items()]
            self._inventory.replace([*sizes, *map(Have, archive.tags)])


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _found(what: Mapping[K, V], key: K) -> V:
    try:
        return what[key]
    except KeyError:
        raise NotFound(f"{key} is not in the archive") from None
