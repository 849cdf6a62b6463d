"""Keeps an inventory in step with containerd, whatever becomes of the connection.

Theory of operation. containerd 1.x tells when an image is created or deleted, but not when a blob is, nor when garbage
collection has removed one. So what we do is list: everything, in every namespace that we serve, whenever there is a
reason to. Reasons are an event, a changed modification time of a directory of blobs, and time: shortly after the last
reason (an event comes before its effects are all to be seen, and subscribing may miss one), then less and less often.
Where the directory can't be read, only time tells of blobs, so it is kept short. That can change at any time:
containerd 1.7 and later make the directory with their first blob, and a mount may come late. So the directory is looked
for as often as its modification times are, and what was found is acted on at once.

Two events are taken at their word, at once: an image that was deleted, and (on 2.x) a blob that was created. Events
that arrive during a listing are applied to its result, which may be older than they are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from pathlib import Path

from peili.mirror import Gone, Have, PeiliError, StoreUnavailable
from peili.mirror.content.inventory import Inventory
from peili.stores.containerd.api import Api
from peili.stores.containerd.content import Access, access_to
from peili.stores.containerd.events import FILTER, Created, Event, Untagged, read_event
from peili.stores.containerd.listing import Blob, Listing
from peili.stores.containerd.options import Options
from peili.stores.containerd.pace import Pace

RETRY = 0.5
"""Seconds until a connection that was lost is tried again."""
LOOK = 0.5
"""Seconds between two looks at the directories of blobs."""
_EVENTS = 1024  # events kept while a listing is under way; further ones wait in the connection


class Follower:
    """Follows the containerd behind `api`, and feeds `inventory`.

    Attributes:
        listing: what there was when it was last listed, and what events told since.
        namespaces: those that are served; empty while containerd was not reached yet and none are configured.
        content_root: the directory of the content store; None while it can't be read, or is not there.
        connected: whether containerd answers, and the inventory is in step with it.
    """

    def __init__(self, api: Api, options: Options, inventory: Inventory, log: logging.Logger) -> None:
        self.listing = Listing()
        self.namespaces: tuple[str, ...] = options.namespaces
        self.content_root: Path | None = None
        self.connected = False
        self._root: Path | None = None  # where it has to be, whether or not it is there
        self._access = Access.ABSENT
        self._api = api
        self._options = options
        self._inventory = inventory
        self._log = log
        self._told: str | None = None

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            while True:
                reason = await self._session()
                self.connected = False
                self._tell(logging.WARNING, f"{reason}; going on with what is known, and trying again")
                await asyncio.sleep(RETRY)
        except Exception:
            self._log.exception("following containerd ended, which is a bug; it has to be begun anew")
            raise
        finally:
            self.connected = False

    async def _session(self) -> str:
        """Follow for as long as containerd answers; why it no longer does."""
        reason = ""
        try:
            async with asyncio.TaskGroup() as tasks:
                events = asyncio.Queue[Event](_EVENTS)
                tasks.create_task(self._listen(events))
                self._root = self._options.content_path or await self._api.content_root()
                self._look()
                await self._follow(events)
        except* PeiliError as lost:
            reason = str(lost.exceptions[0])
        return reason

    def _look(self) -> bool:
        """Find out whether the directory may be read; whether that is another answer than the last time."""
        # A few calls of stat on the loop, as in `_marks`: containerd's content store is on a local disk, and a thread
        # would cost more than they do.
        before = self._access, self.content_root
        self._access = Access.ABSENT if self._root is None else access_to(self._root)
        self.content_root = self._root if self._access is Access.READABLE else None
        return (self._access, self.content_root) != before

    async def _listen(self, events: asyncio.Queue[Event]) -> None:
        async for envelope in self._api.events(FILTER):
            await events.put(read_event(envelope))
        raise StoreUnavailable("containerd ended its events")

    async def _follow(self, events: asyncio.Queue[Event]) -> None:
        pace = Pace(quick=self.content_root is None)
        while True:
            self._look()
            pace.set_quick(quick=self.content_root is None)
            marks = self._marks()  # before listing: what changes meanwhile is a reason to list again
            with pace.measured():
                self.namespaces = self._options.namespaces or tuple(await self._api.namespaces())
                listing = await Listing.read(self._api, self.namespaces, self.listing)
            while not events.empty():
                if apply(events.get_nowait(), listing, self.namespaces):
                    pace.hurry()
            self.listing = listing
            self._inventory.replace(listing.haves())
            self._tell_connected()
            await self._until_due(pace, events, marks)

    async def _until_due(self, pace: Pace, events: asyncio.Queue[Event], marks: tuple[int, ...]) -> None:
        """Wait until it is time to list again, and act on events meanwhile."""
        while not pace.is_due():
            try:
                async with asyncio.timeout(min(LOOK, pace.remaining())):
                    event = await events.get()
            except TimeoutError:
                if self._look():
                    self._tell_connected()
                if self._marks() != marks:
                    pace.hurry()
                continue
            if apply(event, self.listing, self.namespaces):
                pace.hurry()
            self._publish(event)

    def _publish(self, event: Event) -> None:
        match event:
            case Untagged(reference=reference) if reference not in self.listing.images:
                self._inventory.update([Gone(reference)])
            case Created(digest=digest) if digest in self.listing.blobs:
                self._inventory.update([Have(digest, size=self.listing.blobs[digest].size)])
            case _:
                pass

    def _marks(self) -> tuple[int, ...]:
        """What changes when a blob is added or removed."""
        # Two calls of stat on the loop: see `_look`.
        if self.content_root is None:
            return ()
        return tuple(_modified(self.content_root / "blobs" / algorithm) for algorithm in ("sha256", "sha512"))

    def _tell_connected(self) -> None:
        self.connected = True
        self._tell(logging.INFO, f"following containerd on {self._options.socket}; content is read {self._where()}")

    def _where(self) -> str:
        if self._root is None:
            return "through its API, it does not say where its directory is"
        match self._access:
            case Access.READABLE:
                return f"from {self._root}"
            case Access.ABSENT:
                return f"through its API for now, {self._root} is not there yet"
            case Access.REFUSED:
                return f"through its API, {self._root} can't be read"

    def _tell(self, level: int, line: str) -> None:
        """Log `line`, unless it was the last."""
        if line != self._told:
            self._told = line
            self._log.log(level, "%s", line)


def apply(event: Event, listing: Listing, namespaces: Collection[str]) -> bool:
    """Do to `listing` what `event` says for certain; whether more may have changed than that."""
    match event:
        case Created(namespace, digest, size) if namespace in namespaces:
            listing.blobs.setdefault(digest, Blob(digest, size, namespace))
            return True
        case Untagged(namespace, reference) if namespace in namespaces:
            tagged = listing.images.get(reference)
            if tagged is not None and tagged.namespace == namespace:
                del listing.images[reference]
            return True
        case _:
            return not event.namespace or event.namespace in namespaces


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
