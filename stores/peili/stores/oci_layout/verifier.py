"""Hashes the files of an OCI layout, each once until it changes, because a layout's files may have any content."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path

from peili.mirror import Digest, NotFound, StoreUnavailable, Tasks
from peili.stores.oci_layout.files import FileStamp, open_blob, stamp_of

_MAX_THREADS = 2  # files that are hashed at the same time
_MAX_VERIFIED = 65_536  # files that are remembered as correct
_BUFFER = 1 << 20  # bytes


class FileVerifier:
    """Finds out whether the content of a file matches its digest. For use on one event loop.

    Concurrent calls for the same file share one computation. It goes on when its callers are cancelled, so that the
    result for a large file is known at the next call. It ends when the store is exited.

    Args:
        path: The directory of the layout.
        tasks: Owns the tasks that compute hashes.
    """

    def __init__(self, path: Path, tasks: Tasks) -> None:
        self._path = path
        self._tasks = tasks
        self._verified: OrderedDict[Digest, FileStamp] = OrderedDict()
        self._running: dict[tuple[Digest, FileStamp], asyncio.Future[bool | None]] = {}
        self._slots = asyncio.Semaphore(_MAX_THREADS)

    def is_verified(self, digest: Digest, stamp: FileStamp) -> bool:
        """Return whether the file with this stamp was hashed and matches its digest."""
        return self._verified.get(digest) == stamp

    def verify(self, digest: Digest, stamp: FileStamp) -> asyncio.Future[bool | None]:
        """Start to hash the file with this stamp, or join a running computation. Await the future with a shield.

        Returns:
            A future: whether the content matches the digest; None if the file has changed meanwhile. It raises
            StoreUnavailable if the file can't be read or the store is exited.
        """
        key = (digest, stamp)
        result = self._running.get(key)
        if result is None:
            result = self._running[key] = asyncio.get_running_loop().create_future()
            # Retrieves the error, so that asyncio does not report one that nobody waits for.
            result.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._tasks.start(self._hash(digest, stamp, result)).add_done_callback(lambda _: self._end(key))
        return result

    async def _hash(self, digest: Digest, stamp: FileStamp, result: asyncio.Future[bool | None]) -> None:
        stop = threading.Event()
        try:
            async with self._slots:
                is_correct = await asyncio.to_thread(_is_correct, self._path, digest, stamp, stop)
            if is_correct:
                self._verified[digest] = stamp
                self._verified.move_to_end(digest)
                if len(self._verified) > _MAX_VERIFIED:
                    self._verified.popitem(last=False)
            result.set_result(is_correct)
        except (NotFound, OSError) as error:
            result.set_exception(StoreUnavailable(f"{self._path}: {digest}: {error}"))
        except StoreUnavailable as error:
            result.set_exception(error)
        finally:
            stop.set()

    def _end(self, key: tuple[Digest, FileStamp]) -> None:
        """Clean up. Called by the task's callback, because a task that is cancelled before its start runs no code."""
        result = self._running.pop(key)
        if not result.done():
            result.set_exception(StoreUnavailable(f"{self._path} is no longer watched"))


def _is_correct(path: Path, digest: Digest, stamp: FileStamp, stop: threading.Event) -> bool | None:
    with os.fdopen(open_blob(path, digest), "rb", buffering=0) as file:
        if stamp_of(file.fileno()) != stamp:
            return None
        computed, buffer = hashlib.new(digest.algorithm), bytearray(_BUFFER)
        while read := file.readinto(buffer):
            if stop.is_set():
                return None
            computed.update(memoryview(buffer)[:read])
        return None if stamp_of(file.fileno()) != stamp else computed.hexdigest() == digest.encoded
