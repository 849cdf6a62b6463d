"""Keeps the store's inventory up to date with containerd, and reconnects if containerd restarts.

How it works: containerd 1.x sends an event when an image is created or deleted, but not when a blob is created or
deleted, and not when garbage collection has removed one. So the follower lists everything in every served namespace,
whenever there is a reason. The reasons are: an event, a changed modification time of a directory of blobs, and time.
After a change, it lists again soon, because an event arrives before all of its effects are visible, and because a
subscription may miss an event. Then the intervals grow.

If the directory can't be read, only a list shows new blobs, so the intervals stay short. This can change at any time:
containerd ≥ 1.7 creates the directory with the first blob, and a mount may come later. So the follower checks the
directory as often as its modification times, and uses it as soon as it is there.

A list takes a while, and hosts rely on what a host says that it has. So three changes take effect at once: an image was
deleted, a blob is complete, a tag means something else. Events do not say enough about the last two; recent.py asks
containerd about these blobs and images. Without an event, it notices a blob only if the directory can be read and the
system has inotify; else the next list shows it. The result of a list may be older than the changes that were noticed
during the list, so these are applied to the result.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path

from peili.mirror import Broadcast, Digest, Gone, Have, Inventory, PeiliError, StoreUnavailable
from peili.stores.containerd.api import ContainerdApi
from peili.stores.containerd.content import Access, access_to
from peili.stores.containerd.inotify_limits import LimitLog
from peili.stores.containerd.listing import (
    EVENT_FILTER,
    BlobCreated,
    ContainerdEvent,
    ImageChanged,
    ImageDeleted,
    ImageFound,
    Listing,
    parse_event,
)
from peili.stores.containerd.options import ContainerdOptions
from peili.stores.containerd.recent import RecentChanges

RECONNECT_DELAY = 0.5
"""Seconds between a lost connection and the next try."""
CHECK_INTERVAL = 0.5
"""Seconds between two checks of the directories of blobs."""
_MAX_EVENTS = 1024  # changes kept during a list; further ones wait

FIRST_INTERVAL = 1.0
"""Seconds between a change and the second list after it. Each further interval is twice as long."""
MAX_INTERVAL = 30.0
"""The longest interval between two lists, in seconds."""
MAX_POLL_INTERVAL = 1.5
"""The longest interval in seconds if only a list shows new blobs."""
MIN_PAUSE = 0.2
"""The shortest pause between two lists, in seconds."""
PAUSE_FACTOR = 5
"""A pause is at least this many times as long as the list before it took."""


class ContainerdFollower:
    """Follows one containerd, and updates `inventory`.

    Attributes:
        listing: The result of the last list, updated by the events since then.
        namespaces: The served namespaces. Empty if none are configured and containerd has not answered yet.
        content_root: The directory of the content store; None if it can't be read or does not exist.
        expected_root: Where that directory should be; None if containerd does not tell.
        is_connected: Whether containerd answers and the inventory is up to date.
        limits: Says if limits of inotify are reached.
    """

    def __init__(
        self, api: ContainerdApi, options: ContainerdOptions, inventory: Inventory, log: logging.Logger
    ) -> None:
        self.listing = Listing()
        self.namespaces: tuple[str, ...] = options.namespaces
        self.content_root: Path | None = None
        self.is_connected = False
        self.expected_root: Path | None = None
        self.limits = LimitLog(log)
        self._access = Access.ABSENT
        self._api = api
        self._options = options
        self._inventory = inventory
        self._log = log
        self._last_line: str | None = None
        self._schedule = ListSchedule(is_polling=True)
        self._list_requested = asyncio.Event()
        self._list_ended = Broadcast()
        self._during_list: list[ContainerdEvent] | None = None  # the events since the list began that is being made

    async def run(self) -> None:
        """Follow containerd until cancelled."""
        try:
            while True:
                reason = await self._follow_connection()
                self.is_connected = False
                self._log_once(logging.WARNING, f"{reason}; known content is still served, trying again")
                await asyncio.sleep(RECONNECT_DELAY)
        except Exception:
            self._log.exception("following containerd failed, which is a bug; the store is restarted")
            raise
        finally:
            self.is_connected = False

    async def _follow_connection(self) -> str:
        """Follow until containerd no longer answers. Returns the reason."""
        reason = ""
        self._schedule = ListSchedule(is_polling=self.content_root is None)
        recent = RecentChanges(self._api, self._handle, self._update_namespaces, self._is_listed, self.limits.note)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._receive_events(recent))
                self.expected_root = self._options.content_path or await self._api.content_root()
                self._check_access()
                tasks.create_task(recent.run(self.expected_root))
                await self._list_repeatedly()
        except* PeiliError as errors:
            reason = str(errors.exceptions[0])
        # Before Python 3.13, a task group loses a cancellation that comes while it ends because of an error.
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError
        return reason

    async def _receive_events(self, recent: RecentChanges) -> None:
        async for envelope in self._api.events(EVENT_FILTER):
            event = parse_event(envelope)
            await self._handle(event)
            match event:
                case ImageChanged():
                    recent.ask(event)
                case ImageDeleted(namespace=namespace, reference=reference):
                    recent.cancel(ImageChanged(namespace, reference))  # the answer may be older
                case _:
                    pass
        raise StoreUnavailable("containerd ended its stream of events")

    async def _list_repeatedly(self) -> None:
        while True:
            self._check_access()
            self._schedule.set_polling(is_polling=self.content_root is None)
            mtimes = self._blob_mtimes()  # before the list, so that a change during the list causes another one
            with self._schedule.time_list():
                await self._update_namespaces()
                self.listing = await self._list()
            self._inventory.replace(self.listing.store_events())
            self._set_connected()
            await self._wait_until_due(mtimes)

    async def _update_namespaces(self) -> Collection[str]:
        """Return the served namespaces. containerd creates one with its first blob, without an event."""
        self.namespaces = self._options.namespaces or tuple(await self._api.namespaces())
        return self.namespaces

    async def _list(self) -> Listing:
        """Return a list of everything, to which the events that came meanwhile were applied, too."""
        during: list[ContainerdEvent] = []
        self._during_list = during
        try:
            listing = await Listing.read(self._api, self.namespaces, self.listing)
        finally:
            self._during_list = None
            self._list_ended.notify()
        for event in during:
            listing.apply(event, self.namespaces)
        return listing

    async def _wait_until_due(self, mtimes: tuple[int, ...]) -> None:
        """Look at the modification times until the next list is due."""
        while not self._schedule.is_due():
            self._list_requested.clear()
            try:
                async with asyncio.timeout(min(CHECK_INTERVAL, self._schedule.remaining())):
                    await self._list_requested.wait()
            except TimeoutError:
                self.refresh_access()
                if self._blob_mtimes() != mtimes:
                    self._schedule.request_list()

    async def _handle(self, event: ContainerdEvent) -> None:
        """Handle an event. Those that come during a list wait if there are too many."""
        while self._during_list is not None and len(self._during_list) >= _MAX_EVENTS:
            await self._list_ended.next_change.wait()
        if self._during_list is not None:
            self._during_list.append(event)
        if self.listing.apply(event, self.namespaces):
            self._schedule.request_list()
            self._list_requested.set()
        self._publish(event)

    def _is_listed(self, digest: Digest) -> bool:
        return digest in self.listing.blobs

    def _publish(self, event: ContainerdEvent) -> None:
        listing = self.listing
        match event:
            # Another namespace may still have the image.
            case ImageDeleted(reference=reference) if reference not in listing.images:
                self._inventory.update([Gone(reference)])
            case BlobCreated(digest=digest) if digest in listing.blobs:
                self._inventory.update([Have(digest, size=listing.blobs[digest].size)])
            case ImageFound(reference=reference) if (image := listing.images.get(reference)) is not None:
                if image.target.digest in listing.blobs:
                    self._inventory.update([Have(reference, size=image.target.size, target=image.target.digest)])
            case _:
                pass

    def refresh_access(self) -> None:
        """Update `content_root` now, because the directory may just have been created."""
        if self._check_access() and self.is_connected:
            self._set_connected()

    def shows_ingests(self) -> bool:
        """Return whether ingests can be read now, or as soon as containerd creates the directory of its first blob."""
        if self._access is not Access.ABSENT or self.expected_root is None:
            return self.content_root is not None
        self.refresh_access()
        if self.content_root is not None:
            return True
        # Without access to containerd's directory, there would be none to what containerd creates in it.
        is_new = self._options.content_path is None and not self.listing.blobs
        return is_new and os.access(self.expected_root.parent, os.R_OK | os.X_OK)

    def _check_access(self) -> bool:
        """Check whether the directory can be read. Returns whether that has changed.

        Blocks for a few calls of ``stat``, because the content store is on a local disk, and a thread would cost more.
        """
        previous = self._access, self.content_root
        self._access = Access.ABSENT if self.expected_root is None else access_to(self.expected_root)
        self.content_root = self.expected_root if self._access is Access.READABLE else None
        return (self._access, self.content_root) != previous

    def _blob_mtimes(self) -> tuple[int, ...]:
        """Return the modification times that change when a blob is added or removed. Blocks for two ``stat`` calls."""
        if self.content_root is None:
            return ()
        mtimes: list[int] = []
        for algorithm in ("sha256", "sha512"):
            try:
                mtimes.append((self.content_root / "blobs" / algorithm).stat().st_mtime_ns)
            except OSError:
                mtimes.append(0)
        return tuple(mtimes)

    def _set_connected(self) -> None:
        self.is_connected = True
        if self.expected_root is None:
            source = "through its API, because it does not tell its directory"
        elif self._access is Access.READABLE:
            source = f"from {self.expected_root}"
        elif self._access is Access.ABSENT:
            source = f"through its API, because {self.expected_root} does not exist yet"
        else:
            source = f"through its API, because {self.expected_root} can't be read"
        self._log_once(logging.INFO, f"following containerd on {self._options.socket}; content is read {source}")

    def _log_once(self, level: int, line: str) -> None:
        """Log `line`, unless it was the last one."""
        if line != self._last_line:
            self._last_line = line
            self._log.log(level, "%s", line)


class ListSchedule:
    """When to list everything again: soon after a change, rarely without one, and never so often that it costs much.

    Args:
        is_polling: Whether only a list shows what changed.
    """

    def __init__(self, *, is_polling: bool) -> None:
        self._longest = MAX_POLL_INTERVAL if is_polling else MAX_INTERVAL
        self._interval = FIRST_INTERVAL
        self._is_requested = True  # a new connection counts as a change
        self._ended = time.monotonic()
        self._took = 0.0

    @contextmanager
    def time_list(self) -> Generator[None, None, None]:
        """Measure the list that is made inside."""
        started = time.monotonic()
        self._interval = FIRST_INTERVAL if self._is_requested else min(2 * self._interval, self._longest)
        self._is_requested = False
        yield
        self._ended = time.monotonic()
        self._took = self._ended - started

    def set_polling(self, *, is_polling: bool) -> None:
        """Change whether only a list shows what changed."""
        self._longest = MAX_POLL_INTERVAL if is_polling else MAX_INTERVAL
        self._interval = min(self._interval, self._longest)

    def request_list(self) -> None:
        """List as soon as the pause allows, because something changed."""
        self._is_requested = True

    def remaining(self) -> float:
        """Return the seconds until the next list, if nothing changes until then."""
        pause = max(MIN_PAUSE, PAUSE_FACTOR * self._took)
        wait = pause if self._is_requested else max(pause, self._interval)
        return max(0.0, self._ended + wait - time.monotonic())

    def is_due(self) -> bool:
        """Return whether it is time for the next list."""
        return not self.remaining()
