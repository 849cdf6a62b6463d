"""Finds the ingests in containerd's content store and reports how far they are, through the store's inventory.

An *ingest* is containerd's word for a blob that a client is still writing. It is a directory with the files ``ref``,
``total`` and ``data``; containerd creates them in this order. At commit, it moves ``data`` to the path of the blob.

One notifier watches the directories of all ingests, so nothing runs while nothing changes. Without inotify, the
directories are listed ten times a second.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from peili.mirror import Digest, Gone, Have, Inventory, NotFound, PeiliError
from peili.stores.containerd.content import is_absent, read_field
from peili.stores.containerd.follower import ContainerdFollower
from peili.stores.containerd.inotify import DirectoryNotifier

MAX_INGESTS = 256
"""How many ingests are followed at the same time."""
MIN_PAUSE = 0.02
"""The shortest time between two looks at the directories, in seconds."""
POLL_INTERVAL = 0.1
"""Seconds between two looks if no change is reported."""
SAFETY_INTERVAL = 2.0
"""Seconds between two looks if changes are reported; for what a notifier can't see, such as a new mount."""
REPORT_INTERVAL = 0.5
"""Growth of an ingest is reported at most this often, in seconds."""
REPORT_BYTES = 1 << 20
"""Growth is reported from this many bytes on, or from a twentieth of the blob on if that is less."""
COMMIT_TIMEOUT = 5.0
"""Seconds in which the follower's list must have a committed blob."""
CLOSE_TIMEOUT = 1.0
"""Seconds after which an ingest is given up if its writer has closed the file. At commit, the file moves before."""
WHOLE_TIMEOUT = 15.0
"""The same if all bytes are there. The runtime could not commit them, probably because they are wrong. Hosts that read
them find that out themselves with the last byte. Without it, they would fetch the rest from upstream in vain.
"""
STALE_AGE = 60.0
"""An ingest is given up if its file was not written for this many seconds. It comes back when it grows."""

_REF = re.compile(r"(?P<namespace>[^/]+)/[0-9]+/(?:.*[-@])?(?P<digest>sha(?:256|512):[0-9a-f]+)", re.DOTALL)


@dataclass(slots=True)
class Ingest:
    """An ingest of a blob of `total` bytes, of which the first `available` bytes have arrived.

    `is_stale` is whether nobody seems to write it any more.
    """

    digest: Digest
    total: int
    available: int
    is_stale: bool = False


@dataclass(slots=True)
class _Report:
    """What was reported of a digest, and when. `ended` is when its ingest was found to have ended, if it has."""

    have: Have
    time: float
    ended: float | None = None


class IngestFollower:
    """Reports the ingests in the served namespaces as incomplete `Have` events, until the blobs are complete.

    Only ingests with a known size are reported. They are followed even while containerd does not answer. An ingest is
    gone when its writer has closed the file without a commit, as it does when the client is killed, or has not written
    it for `STALE_AGE` seconds. It comes back when it is continued. Only inotify shows that a file was closed.

    Args:
        follower: Knows the directory of the content store, and keeps the complete blobs in `inventory`.
        namespaces: The served namespaces; empty for all.
        inventory: Receives the events.
    """

    def __init__(self, follower: ContainerdFollower, namespaces: Collection[str], inventory: Inventory) -> None:
        self._follower = follower
        self._namespaces = namespaces
        self._inventory = inventory
        self._root: Path | None = None
        self._notifier: DirectoryNotifier | None = None
        self._ingests: dict[Path, Ingest] = {}
        self._ignored: set[Path] = set()
        self._unfinished: set[Path] = set()  # directories in which containerd has not created all files yet
        self._reports: dict[Digest, _Report] = {}

    def is_given_up(self, path: Path) -> bool:
        """Return whether the ingest in the directory `path` has no writer any more, as far as this is known."""
        ingest, closed = self._ingests.get(path), self._closed_since(path)
        if ingest is None:
            return False
        timeout = CLOSE_TIMEOUT if ingest.available < ingest.total else WHOLE_TIMEOUT
        return ingest.is_stale or (closed is not None and asyncio.get_running_loop().time() - closed >= timeout)

    def expect_open(self, path: Path) -> None:
        """Note that this process is about to open the ingest in the directory `path`. It writes nothing."""
        if self._notifier is not None:
            self._notifier.expect_open(path / "data")

    def _closed_since(self, path: Path) -> float | None:
        return None if self._notifier is None else self._notifier.closed_since(path / "data")

    async def run(self) -> None:
        """Follow the ingests until cancelled."""
        notifier = self._notifier = DirectoryNotifier(self._follower.limits.note)
        try:
            while True:
                is_notified = await self._look(notifier)
                has_more = self._report(asyncio.get_running_loop().time())
                await asyncio.sleep(MIN_PAUSE)  # so that many changes at once cost one look
                if has_more or self._root is None:
                    await notifier.wait(REPORT_INTERVAL)
                else:
                    await notifier.wait(SAFETY_INTERVAL if is_notified else POLL_INTERVAL)
        finally:
            self._notifier = None
            notifier.close()
            self._inventory.update([Gone(digest) for digest in self._reports if not self._is_complete(digest)])
            self._reports.clear()

    async def _look(self, notifier: DirectoryNotifier) -> bool:
        """Update the ingests from their files. Returns whether `notifier` reports the next change.

        Blocks for one ``stat`` call for each ingest, because the content store is on a local disk.
        """
        follower = self._follower
        if follower.content_root is None and follower.expected_root is not None:
            notifier.watch(follower.expected_root.parent)  # a new containerd creates the directory with its first blob
            follower.refresh_access()
        root = follower.content_root
        if root != self._root:
            self._root = root
            self._forget(self._ingests.keys() | self._unfinished, notifier)
            self._ignored.clear()
        if root is None:
            return False
        # Before it is listed, so that no change is missed. The root, if containerd has not created the directory yet.
        is_notified = notifier.watch(root / "ingest") or notifier.watch(root)
        present = _list_directory(root / "ingest")
        self._forget((self._ingests.keys() | self._unfinished) - present, notifier)
        self._ignored &= present
        for path, ingest in list(self._ingests.items()):
            is_notified = notifier.watch(path) and is_notified  # again, because it may be a new directory
            try:
                status = (path / "data").lstat()
                ingest.available, ingest.is_stale = status.st_size, _is_stale(status)
            except OSError:  # the ingest has ended; its directory is removed next
                del self._ingests[path]
                self._unfinished.add(path)
        room = MAX_INGESTS - len(self._ingests)
        new = list(present - self._ingests.keys() - self._ignored)[:room]
        return is_notified if not new else await self._add(root, new, notifier) and is_notified

    async def _add(self, root: Path, paths: Collection[Path], notifier: DirectoryNotifier) -> bool:
        """Read new ingests. One that is not complete yet is read again after the next change."""
        watched = [notifier.watch(path) for path in paths]  # before they are read
        found = await asyncio.to_thread(_read_ingests, root, paths, self._namespaces)
        self._unfinished.update(paths)
        self._unfinished -= found.keys()
        for path, ingest in found.items():
            if ingest is None:
                notifier.unwatch(path)
                self._ignored.add(path)
            else:
                self._ingests[path] = ingest
        return all(watched)

    def _forget(self, paths: Collection[Path], notifier: DirectoryNotifier) -> None:
        for path in paths:
            notifier.unwatch(path)
            self._ingests.pop(path, None)
            self._unfinished.discard(path)

    def _report(self, now: float) -> bool:
        """Report what has changed. Returns whether there is more to report soon."""
        most: dict[Digest, Ingest] = {}  # of several ingests of a blob, the one with the most bytes
        has_more = False
        for path, ingest in self._ingests.items():
            if self.is_given_up(path):
                continue
            has_more |= self._closed_since(path) is not None  # it may be given up soon
            if ingest.digest not in most or ingest.available > most[ingest.digest].available:
                most[ingest.digest] = ingest
        for digest in [each for each in (*self._reports, *most) if self._is_complete(each)]:
            self._reports.pop(digest, None)
            most.pop(digest, None)
        for ingest in most.values():
            has_more |= self._report_growth(ingest, now)
        for digest in self._reports.keys() - most.keys():
            has_more |= self._report_end(digest, now)
        return has_more

    def _report_growth(self, ingest: Ingest, now: float) -> bool:
        """Report an ingest, if it has grown enough. Returns whether it has, but was reported just now."""
        report = self._reports.get(ingest.digest)
        before = report.have.available or 0 if report is not None else 0
        if report is not None and report.ended is None and ingest.available >= before:
            is_enough = ingest.available - before >= min(REPORT_BYTES, max(1, ingest.total // 20))
            if not is_enough or now - report.time < REPORT_INTERVAL:
                return is_enough
        have = Have(ingest.digest, ingest.total, complete=False, available=ingest.available)
        self._reports[ingest.digest] = _Report(have, now)
        self._inventory.update([have])
        return False

    def _report_end(self, digest: Digest, now: float) -> bool:
        """Report that an ingest has ended. Returns whether its blob will soon be reported as complete.

        containerd moves the file of a blob before it records the blob. So the blob stays incomplete for peers until the
        follower's list has it.
        """
        report = self._reports[digest]
        is_committed = self._root is not None and not is_absent(self._root, digest)
        if is_committed and report.ended is None:
            have = Have(digest, report.have.size, complete=False, available=report.have.size)
            self._reports[digest] = _Report(have, now, ended=now)
            self._inventory.update([have])
        elif not is_committed or (report.ended is not None and now - report.ended > COMMIT_TIMEOUT):
            del self._reports[digest]
            self._inventory.update([Gone(digest)])
            return False
        return True

    def _is_complete(self, digest: Digest) -> bool:
        have = self._inventory.get(digest)
        return have is not None and have.complete


def _list_directory(path: Path) -> set[Path]:
    with suppress(OSError):
        return set(path.iterdir())
    return set()


def _read_ingests(root: Path, paths: Collection[Path], namespaces: Collection[str]) -> dict[Path, Ingest | None]:
    """Read new ingests. Blocks. No symbolic link below the content store at `root` is followed.

    Returns:
        The ingests; None for each directory that is not the ingest of a blob of known size in one of `namespaces`.
        Directories that containerd has not finished yet are left out.
    """
    found: dict[Path, Ingest | None] = {}
    for path in paths:
        with suppress(PeiliError, OSError, ValueError):
            status = (path / "data").lstat()  # first, because containerd creates it last
            if ref := read_field(root, path, "ref"):  # empty while containerd writes it again
                found[path] = _parse(ref, root, path, namespaces, status)
    return found


def _is_stale(status: os.stat_result) -> bool:
    return time.time() - status.st_mtime > STALE_AGE


def _parse(ref: bytes, root: Path, path: Path, namespaces: Collection[str], status: os.stat_result) -> Ingest | None:
    """Return the ingest in the directory `path`, whose data has this status. None if it is not one to follow.

    Raises:
        StoreUnavailable, OSError, ValueError: It can't be read now.
    """
    match = _REF.fullmatch(ref.decode(errors="replace"))
    if match is None or (namespaces and match["namespace"] not in namespaces) or not stat.S_ISREG(status.st_mode):
        return None
    try:
        digest = Digest(match["digest"])
        total = read_field(root, path, "total")
    except (ValueError, NotFound):
        return None
    size = int(total)  # ValueError while containerd writes it again
    return Ingest(digest, size, status.st_size, _is_stale(status)) if size > 0 else None
