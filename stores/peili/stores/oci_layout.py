"""A store that serves an OCI image layout: a directory or a read-only mount, as it is now.

How a layout is looked at, and what is believed of it, is `oci_layout_scan`'s matter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import starmap
from pathlib import Path
from typing import Any, Self

from typing_extensions import override

from peili.mirror import (
    ConfigError,
    Content,
    Context,
    Descriptor,
    Digest,
    Have,
    NotFound,
    Reference,
    Store,
    StoreEvent,
    StoreUnavailable,
)
from peili.mirror.filecontent import FileContent
from peili.mirror.inventory import Inventory
from peili.mirror.mediatypes import OCTET_STREAM, detect
from peili.mirror.plugin import running_already
from peili.mirror.tasks import Tasks
from peili.stores.oci_layout_files import MAX_MANIFEST, open_blob, read_blob_at
from peili.stores.oci_layout_scan import Scanner, Snapshot

_POLL = 0.5  # seconds between looks; inotify would not see what another host does to a network file system
_ANSWER_TIMEOUT = 5.0  # seconds after which a file system counts as away
_MEDIA_TYPES = 4096  # media types remembered


class OciLayoutStore(Store):
    """What the OCI image layout at `path` has. A change is noticed within 2 s; a layout that is not there yet is
    waited for.

    Served is every blob that is there in the size that the manifests tell; one that none of them mentions, once it was
    not written to for a second. Tags are the names in ``index.json``: a full reference
    (``io.containerd.image.name``, ``org.opencontainers.image.ref.name``), or a bare tag of `repository`, which is
    written in full, as in ``docker.io/library/redis``. Symbolic links below `path` are not followed.

    Raises ConfigError.
    """

    def __init__(self, path: str | Path, *, repository: str | None = None) -> None:
        if repository is not None and not _is_full_name(repository):
            raise ConfigError("repository", f"a name in full, such as docker.io/library/redis, not {repository!r}")
        self._path = Path(path)
        self._repository = repository
        self._entered = False
        self._snapshot = Snapshot()
        self._away: str | None = f"{path} was not looked at yet"
        self._inventory = Inventory()
        self._media_types: dict[Digest, str] = {}

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        path, repository = config.get("path"), config.get("repository")
        for key in config.keys() - {"path", "repository"}:
            raise ConfigError(key, "unknown option; an OCI layout has path and repository")
        if not isinstance(path, str) or not path:
            raise ConfigError("path", "the directory of an OCI image layout")
        if repository is not None and not isinstance(repository, str):
            raise ConfigError("repository", f"a name in full, such as docker.io/library/redis, not {repository!r}")
        return cls(path, repository=repository)

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        if self._entered:
            raise running_already(self)
        async with Tasks(context.log) as tasks:
            self._entered = True
            tasks.start(self._follow(context.log))
            try:
                yield
            finally:
                self._entered = False
                self._away = f"{self._path} is no longer looked at"
                self._inventory.synced = False

    @override
    def ready(self) -> bool:
        return self._away is None

    @override
    async def resolve(self, reference: Reference) -> Descriptor:
        self._check_there()
        try:
            return self._snapshot.tags[reference]
        except KeyError:
            raise NotFound(f"{reference} is not in {self._path}") from None

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        size = self._size(digest)
        media_type = self._snapshot.media_types.get(digest) or self._media_types.get(digest)
        if media_type is None:
            media_type = await self._detect(digest) if size <= MAX_MANIFEST else OCTET_STREAM
        return Descriptor(media_type, digest, size)

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        size = self._size(digest)
        async with _bounded(self._path):
            content = await FileContent.open(self._path, frozen=True, opener=lambda _: open_blob(self._path, digest))
        if content.size != size:
            await content.aclose()
            raise NotFound(f"{digest} is being replaced in {self._path}")
        return content

    @override
    def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        return self._inventory.watch()

    @override
    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        self._check_there()
        return sorted(self._snapshot.tags.items(), key=lambda item: item[0])

    def _check_there(self) -> None:
        if self._away is not None:
            raise StoreUnavailable(self._away)

    def _size(self, digest: Digest) -> int:
        self._check_there()
        try:
            return self._snapshot.blobs[digest]
        except KeyError:
            raise NotFound(f"{digest} is not in {self._path}") from None

    async def _detect(self, digest: Digest) -> str:
        async with _bounded(self._path):
            try:
                data = await asyncio.to_thread(read_blob_at, self._path, digest)
            except ValueError:  # it grew beyond what a manifest may be since it was looked at
                return OCTET_STREAM
        if len(self._media_types) >= _MEDIA_TYPES:
            self._media_types.clear()
        return self._media_types.setdefault(digest, detect(data))

    async def _follow(self, log: logging.Logger) -> None:
        scanner = Scanner(self._path, self._repository, log)
        while True:
            try:
                snapshot = await self._look(scanner)
            except StoreUnavailable as error:
                self._lost(str(error), log)
            else:
                self._found(snapshot, log)
            await asyncio.sleep(_POLL)

    async def _look(self, scanner: Scanner) -> Snapshot | None:
        looking = asyncio.get_running_loop().run_in_executor(None, scanner.look)
        try:
            if not (await asyncio.wait([looking], timeout=_ANSWER_TIMEOUT))[0]:
                self._away = f"{self._path} does not answer"
            return await looking
        finally:
            looking.cancel()

    def _lost(self, problem: str, log: logging.Logger) -> None:
        if problem != self._away:
            log.warning("%s; waiting for it", problem)
        self._away = problem

    def _found(self, snapshot: Snapshot | None, log: logging.Logger) -> None:
        if snapshot is not None and snapshot != self._snapshot:
            log.info("%s has %d blobs, %d tags", self._path, len(snapshot.blobs), len(snapshot.tags))
        if snapshot is not None:
            self._snapshot = snapshot
            self._inventory.replace([*map(Have, snapshot.tags), *starmap(Have, snapshot.blobs.items())])
        self._away = None


def _is_full_name(repository: str) -> bool:
    try:
        Reference.parse(f"{repository}:tag")
    except ValueError:
        return False
    return True


@asynccontextmanager
async def _bounded(path: Path) -> AsyncGenerator[None]:
    """A file system that hangs counts as away: what is in here ends in time, or in StoreUnavailable."""
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT):
            yield
    except TimeoutError as error:
        raise StoreUnavailable(f"{path} does not answer") from error
