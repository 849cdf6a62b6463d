"""A store that serves an OCI image layout: a directory or a read-only mount, which may change at any time."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import starmap
from pathlib import Path
from typing import Any, Self

from typing_extensions import override

from peili.mirror import (
    MAX_MANIFEST,
    OCTET_STREAM,
    ConfigError,
    Content,
    Context,
    Descriptor,
    Digest,
    FileContent,
    Gone,
    GrowingFileContent,
    Have,
    Inventory,
    Key,
    NotFound,
    Options,
    Reference,
    Store,
    StoreEvent,
    StoreUnavailable,
    Tasks,
    detect_media_type,
    open_in_thread,
    running_already,
)
from peili.stores.oci_layout.files import (
    FileStamp,
    blob_name,
    blob_stamp,
    is_stale,
    open_blob,
    open_ingest,
    read_manifest,
    stamp_of,
)
from peili.stores.oci_layout.scanner import LayoutScanner, LayoutSnapshot
from peili.stores.oci_layout.verifier import FileVerifier

_SCAN_INTERVAL = 0.5  # seconds; inotify would not notice what another host changes on a network file system
_TIMEOUT = 5.0  # seconds after which a file system counts as unavailable
_MAX_MEDIA_TYPES = 4096  # media types that are remembered
_REPOSITORY = "a full name, such as docker.io/library/redis"


class OciLayoutStore(Store):
    """Serves the OCI image layout at `path`.

    A change is noticed within 2 s. If there is no layout yet, the store waits for it.

    A blob is served if it has the size that the manifests state. A blob that no manifest mentions is served one second
    after the last write to it.

    Another program may write a blob of known size slowly to the file ``ingest/ALGORITHM/ENCODED.SIZE`` of the layout,
    for example ``ingest/sha256/2c26….1048576``, and then move it to its place in ``blobs``. The store reports it and
    opens it (`partial`) while it grows. If the file is not written for a minute, it counts as given up until it grows.

    Tags are the names in ``index.json``: a full reference (``io.containerd.image.name``,
    ``org.opencontainers.image.ref.name``), or a bare tag of `repository`. Symbolic links below `path` are not followed.

    A file is hashed at its first use, and again after it has changed. If its content does not match its digest, this is
    logged, and the blob is neither served nor announced until the file changes. So the first `open` of a large file
    takes as long as to hash it. The computation goes on if the caller is cancelled.

    Args:
        path: The directory of the layout.
        repository: The repository to which bare tags belong: a full name, such as ``docker.io/library/redis``. By
            default, bare tags are ignored.
        verify: False if no file must be hashed, because the files are known to be correct, for example on a file
            system that verifies them itself.

    Raises:
        ConfigError: An option is wrong.
    """

    def __init__(self, path: str | Path, *, repository: str | None = None, verify: bool = True) -> None:
        if repository is not None:
            try:
                Reference.parse(f"{repository}:tag")
            except ValueError as error:
                raise ConfigError("repository", f"{_REPOSITORY}, not {repository!r}") from error
        self._path = Path(path)
        self._is_verifying = verify
        self._repository = repository
        self._is_running = False
        self._snapshot = LayoutSnapshot()
        self._problem: str | None = f"{path} was not scanned yet"  # why the layout is not available
        self._inventory = Inventory()
        self._media_types: dict[Digest, str] = {}
        self._corrupt: dict[Digest, FileStamp] = {}  # limited by the number of files in the layout
        self._verifier: FileVerifier | None = None
        self._log: logging.Logger | None = None

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        options = Options(config, "path", "repository", "verify")
        return cls(
            options.path("path", expected="the directory of an OCI image layout"),
            repository=options.text("repository", None, expected=_REPOSITORY),
            verify=options.boolean("verify", True),
        )

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        if self._is_running:
            raise running_already(self)
        async with Tasks(context.log) as tasks:
            self._is_running, self._log = True, context.log
            self._verifier = FileVerifier(self._path, tasks)
            tasks.start(self._scan_repeatedly(context.log))
            try:
                yield
            finally:
                self._is_running, self._verifier = False, None
                self._problem = f"{self._path} is no longer watched"
                self._inventory.synced = False

    @override
    def ready(self) -> bool:
        return self._problem is None

    @override
    async def resolve(self, reference: Reference) -> Descriptor:
        self._check_available()
        try:
            target = self._snapshot.tags[reference]
        except KeyError:
            raise NotFound(f"{reference} is not in {self._path}") from None
        await self.describe(target.digest)
        return target

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        size = self._find_size(digest)
        async with _time_limit(self._path):
            stamp = await asyncio.to_thread(blob_stamp, self._path, digest)
        await self._verify(digest, stamp, wait=size <= MAX_MANIFEST)
        media_type = self._snapshot.media_types.get(digest) or self._media_types.get(digest)
        if media_type is None:
            media_type = await self._detect_media_type(digest) if size <= MAX_MANIFEST else OCTET_STREAM
        return Descriptor(media_type, digest, size)

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        """Open content, as `Store.open` does. The bytes of an unfinished blob are not verified."""
        try:
            return await self._open_blob(digest)
        except NotFound:
            if not partial:
                raise
        async with _time_limit(self._path):
            opener = functools.partial(open_ingest, self._path, digest)
            fd, total = await open_in_thread(opener, lambda opened: os.close(opened[0]))
        final_path = self._path / blob_name(digest)
        return GrowingFileContent(fd, final_path, total, is_given_up=lambda: is_stale(os.fstat(fd)))

    async def _open_blob(self, digest: Digest) -> Content:
        size = self._find_size(digest)
        stamps: list[FileStamp] = []

        def open_and_stamp(_: object) -> int:
            fd = open_blob(self._path, digest)
            stamps.append(stamp_of(fd))
            return fd

        async with _time_limit(self._path):
            content = await FileContent.open(self._path, frozen=True, opener=open_and_stamp)
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
    def shows_in_flight(self) -> bool:
        return True

    @override
    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        self._check_available()
        tags = self._snapshot.tags.items()
        return sorted((each for each in tags if each[1].digest not in self._corrupt), key=lambda item: item[0])

    def _check_available(self) -> None:
        if self._problem is not None:
            raise StoreUnavailable(self._problem)

    def _find_size(self, digest: Digest) -> int:
        self._check_available()
        if digest in self._corrupt:
            raise NotFound(f"the content of {digest} in {self._path} does not match the digest")
        try:
            return self._snapshot.blobs[digest]
        except KeyError:
            raise NotFound(f"{digest} is not in {self._path}") from None

    async def _verify(self, digest: Digest, stamp: FileStamp | None, *, wait: bool = True) -> None:
        """Raise NotFound if the file is corrupt. If `wait` is false, a file that is not hashed yet may pass."""
        verifier = self._verifier
        if verifier is None:
            raise StoreUnavailable(f"{self._path} is no longer watched")
        if stamp is None:
            raise NotFound(f"{digest} is not in {self._path}")
        if not self._is_verifying or verifier.is_verified(digest, stamp):
            return
        verification = verifier.verify(digest, stamp)
        verification.add_done_callback(lambda done: self._handle_verified(digest, stamp, done))
        if wait and not (is_correct := await asyncio.shield(verification)):
            if is_correct is None:
                raise NotFound(f"{digest} is being replaced in {self._path}")
            raise NotFound(f"the content of {digest} in {self._path} does not match the digest")

    def _handle_verified(self, digest: Digest, stamp: FileStamp, done: asyncio.Future[bool | None]) -> None:
        if done.cancelled() or done.exception() is not None or done.result() is not False:
            return
        if self._corrupt.get(digest) != stamp and self._log is not None:
            self._log.warning("%s: the content of %s does not match the digest; it is not served", self._path, digest)
        self._corrupt[digest] = stamp
        tags = [tag for tag, target in self._snapshot.tags.items() if target.digest == digest]
        keys: list[Key] = [digest, *tags]
        self._inventory.update(map(Gone, keys))

    async def _forget_changed(self) -> None:
        """Serve a corrupt blob again after its file has changed; it is then hashed anew."""
        before = len(self._corrupt)
        with suppress(StoreUnavailable):  # the next scan raises it, too
            for digest, stamp in list(self._corrupt.items()):
                async with _time_limit(self._path):
                    current = await asyncio.to_thread(blob_stamp, self._path, digest)
                if current != stamp and self._corrupt.get(digest) == stamp:
                    del self._corrupt[digest]
        if len(self._corrupt) < before:
            self._announce()

    def _announce(self) -> None:
        snapshot, corrupt = self._snapshot, self._corrupt
        self._inventory.replace(
            [
                *(
                    Have(tag, target=target.digest)
                    for tag, target in snapshot.tags.items()
                    if target.digest not in corrupt
                ),
                *starmap(Have, (each for each in snapshot.blobs.items() if each[0] not in corrupt)),
            ]
        )

    def _announce_ingests(self) -> None:
        snapshot = self._snapshot
        ingests = [
            Have(digest, ingest.total, complete=False, available=ingest.available)
            for digest, ingest in snapshot.ingests.items()
            if digest not in snapshot.blobs
        ]
        keys = {have.key for have in ingests}
        gone = [Gone(have.key) for have in self._inventory if not have.complete and have.key not in keys]
        self._inventory.update([*gone, *ingests])

    async def _detect_media_type(self, digest: Digest) -> str:
        async with _time_limit(self._path):
            try:
                data = await asyncio.to_thread(read_manifest, self._path, digest)
            except ValueError:  # it has become too large for a manifest since the scan
                return OCTET_STREAM
        if len(self._media_types) >= _MAX_MEDIA_TYPES:
            self._media_types.clear()
        return self._media_types.setdefault(digest, detect_media_type(data))

    async def _scan_repeatedly(self, log: logging.Logger) -> None:
        scanner = LayoutScanner(self._path, self._repository, log)
        while True:
            try:
                snapshot = await self._scan(scanner)
            except StoreUnavailable as error:
                if str(error) != self._problem:
                    log.warning("%s; waiting for it", error)
                self._problem = str(error)
            else:
                self._use(snapshot, log)
                await self._forget_changed()
            await asyncio.sleep(_SCAN_INTERVAL)

    async def _scan(self, scanner: LayoutScanner) -> LayoutSnapshot | None:
        scan = asyncio.get_running_loop().run_in_executor(None, scanner.scan)
        try:
            if not (await asyncio.wait([scan], timeout=_TIMEOUT))[0]:
                self._problem = f"{self._path} does not answer"
            return await scan
        finally:
            scan.cancel()

    def _use(self, snapshot: LayoutSnapshot | None, log: logging.Logger) -> None:
        if snapshot is not None and (snapshot.blobs, snapshot.tags) != (self._snapshot.blobs, self._snapshot.tags):
            log.info("%s has %d blobs, %d tags", self._path, len(snapshot.blobs), len(snapshot.tags))
        if snapshot is not None:
            self._snapshot = snapshot
            self._announce()
            self._announce_ingests()
        self._problem = None


@asynccontextmanager
async def _time_limit(path: Path) -> AsyncGenerator[None]:
    """Raise StoreUnavailable if the body takes longer than `_TIMEOUT`, because the file system hangs."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            yield
    except TimeoutError as error:
        raise StoreUnavailable(f"{path} does not answer") from error
