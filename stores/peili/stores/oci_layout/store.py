"""A store that serves an OCI image layout: a directory or a read-only mount, as it is now.

How a layout is looked at, and what is believed of it, is `oci_layout_scan`'s matter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import starmap
from pathlib import Path
from typing import Any, Self

from typing_extensions import override

from peili.mirror import (
    OCTET_STREAM,
    ConfigError,
    Content,
    Context,
    Descriptor,
    Digest,
    FileContent,
    Gone,
    Have,
    Inventory,
    Key,
    NotFound,
    Reference,
    Store,
    StoreEvent,
    StoreUnavailable,
    Tasks,
    detect_media_type,
    running_already,
)
from peili.stores.oci_layout.files import MAX_MANIFEST, open_blob, read_blob_at
from peili.stores.oci_layout.scan import Scanner, Snapshot
from peili.stores.oci_layout.verify import FileStamp, Verifier, current_stamp, stamp_of

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

    A file is hashed when it is first asked for, and again after it has changed. One whose content is not what its name
    says is logged, and is neither served nor announced until it changes. Opening a large file takes as long as hashing
    it, the first time; the hashing goes on when the caller stops waiting. With `verify` false no file is hashed: for a
    layout whose files are known to be right, as on a file system that verifies them itself.

    Raises ConfigError.
    """

    def __init__(self, path: str | Path, *, repository: str | None = None, verify: bool = True) -> None:
        if repository is not None and not _is_full_name(repository):
            raise ConfigError("repository", f"a name in full, such as docker.io/library/redis, not {repository!r}")
        self._path = Path(path)
        self._verifies = verify
        self._repository = repository
        self._entered = False
        self._snapshot = Snapshot()
        self._away: str | None = f"{path} was not looked at yet"
        self._inventory = Inventory()
        self._media_types: dict[Digest, str] = {}
        self._wrong: dict[Digest, FileStamp] = {}  # no more than the layout has files
        self._verifier: Verifier | None = None
        self._log: logging.Logger | None = None

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        path, repository, verify = config.get("path"), config.get("repository"), config.get("verify", True)
        for key in config.keys() - {"path", "repository", "verify"}:
            raise ConfigError(key, "unknown option; an OCI layout has path, repository and verify")
        if not isinstance(path, str) or not path:
            raise ConfigError("path", "the directory of an OCI image layout")
        if repository is not None and not isinstance(repository, str):
            raise ConfigError("repository", f"a name in full, such as docker.io/library/redis, not {repository!r}")
        if not isinstance(verify, bool):
            raise ConfigError("verify", f"true or false, not {verify!r}")
        return cls(path, repository=repository, verify=verify)

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        if self._entered:
            raise running_already(self)
        async with Tasks(context.log) as tasks:
            self._entered, self._log = True, context.log
            self._verifier = Verifier(self._path, tasks.start)
            tasks.start(self._follow(context.log))
            try:
                yield
            finally:
                self._entered, self._verifier = False, None
                self._away = f"{self._path} is no longer looked at"
                self._inventory.synced = False

    @override
    def ready(self) -> bool:
        return self._away is None

    @override
    async def resolve(self, reference: Reference) -> Descriptor:
        self._check_there()
        try:
            target = self._snapshot.tags[reference]
        except KeyError:
            raise NotFound(f"{reference} is not in {self._path}") from None
        await self.describe(target.digest)
        return target

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        size = self._size(digest)
        async with _bounded(self._path):
            stamp = await asyncio.to_thread(current_stamp, self._path, digest)
        await self._verify(digest, stamp, wait=size <= MAX_MANIFEST)
        media_type = self._snapshot.media_types.get(digest) or self._media_types.get(digest)
        if media_type is None:
            media_type = await self._detect(digest) if size <= MAX_MANIFEST else OCTET_STREAM
        return Descriptor(media_type, digest, size)

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        size = self._size(digest)
        stamps: list[FileStamp] = []

        def opener(_: object) -> int:
            fd = open_blob(self._path, digest)
            stamps.append(stamp_of(fd))
            return fd

        async with _bounded(self._path):
            content = await FileContent.open(self._path, frozen=True, opener=opener)
        if content.size != size:
            await content.aclose()
            raise NotFound(f"{digest} is being replaced in {self._path}")
        try:
            await self._verify(digest, stamps[0])
        except BaseException:
            await content.aclose()
            raise
        return content

    @override
    def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        return self._inventory.watch()

    @override
    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        self._check_there()
        tags = self._snapshot.tags.items()
        return sorted((each for each in tags if each[1].digest not in self._wrong), key=lambda item: item[0])

    def _check_there(self) -> None:
        if self._away is not None:
            raise StoreUnavailable(self._away)

    def _size(self, digest: Digest) -> int:
        self._check_there()
        if digest in self._wrong:
            raise NotFound(f"{digest} in {self._path} has other content than its name says")
        try:
            return self._snapshot.blobs[digest]
        except KeyError:
            raise NotFound(f"{digest} is not in {self._path}") from None

    async def _verify(self, digest: Digest, stamp: FileStamp | None, *, wait: bool = True) -> None:
        """Raises NotFound where the file is wrong. With `wait` false, a file that was not hashed yet may pass."""
        verifier = self._verifier
        if verifier is None:
            raise StoreUnavailable(f"{self._path} is no longer looked at")
        if stamp is None:
            raise NotFound(f"{digest} is not in {self._path}")
        if not self._verifies or verifier.is_right(digest, stamp):
            return
        hashing = verifier.begin(digest, stamp)
        hashing.add_done_callback(lambda done: self._judge(digest, stamp, done))
        if wait and not (right := await asyncio.shield(hashing)):
            what = "is being replaced" if right is None else "has other content than its name says"
            raise NotFound(f"{digest} in {self._path} {what}")

    def _judge(self, digest: Digest, stamp: FileStamp, done: asyncio.Future[bool | None]) -> None:
        if done.cancelled() or done.exception() is not None or done.result() is not False:
            return
        if self._wrong.get(digest) != stamp and self._log is not None:
            self._log.warning("%s: %s has other content than its name says, and is not served", self._path, digest)
        self._wrong[digest] = stamp
        self._inventory.update(map(Gone, self._keys_of(digest)))

    def _keys_of(self, digest: Digest) -> list[Key]:
        return [digest, *(tag for tag, target in self._snapshot.tags.items() if target.digest == digest)]

    async def _forget_changed(self) -> None:
        """What was wrong and is another file now may be right."""
        before = len(self._wrong)
        with suppress(StoreUnavailable):  # the next look at the layout says so
            for digest, stamp in list(self._wrong.items()):
                async with _bounded(self._path):
                    now = await asyncio.to_thread(current_stamp, self._path, digest)
                if now != stamp and self._wrong.get(digest) == stamp:
                    del self._wrong[digest]
        if len(self._wrong) < before:
            self._announce()

    def _announce(self) -> None:
        snapshot, wrong = self._snapshot, self._wrong
        self._inventory.replace(
            [
                *(Have(tag) for tag, target in snapshot.tags.items() if target.digest not in wrong),
                *starmap(Have, (each for each in snapshot.blobs.items() if each[0] not in wrong)),
            ]
        )

    async def _detect(self, digest: Digest) -> str:
        async with _bounded(self._path):
            try:
                data = await asyncio.to_thread(read_blob_at, self._path, digest)
            except ValueError:  # it grew beyond what a manifest may be since it was looked at
                return OCTET_STREAM
        if len(self._media_types) >= _MEDIA_TYPES:
            self._media_types.clear()
        return self._media_types.setdefault(digest, detect_media_type(data))

    async def _follow(self, log: logging.Logger) -> None:
        scanner = Scanner(self._path, self._repository, log)
        while True:
            try:
                snapshot = await self._look(scanner)
            except StoreUnavailable as error:
                self._lost(str(error), log)
            else:
                self._found(snapshot, log)
                await self._forget_changed()
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
            self._announce()
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
