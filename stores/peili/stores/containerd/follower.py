"""Keeps an inventory in step with containerd, whatever becomes of the connection.

Theory of operation. containerd 1.x tells when an image is created or deleted, but not when a blob is, nor when garbage
collection has removed one. So what we do is list: everything, in every namespace that we serve, whenever there is a
reason to. Reasons are an event, a changed modification time of a directory of blobs, and time: shortly after the last
reason (an event comes before its effects are all to be seen, and subscribing may miss one), then less and less often.
Where the directory can't be read, only time tells of blobs, so it is kept short.

Two events are taken at their word, at once: an image that was deleted, and (on 2.x) a blob that was created. Events
that arrive during a listing are applied to its result, which may be older than they are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from pathlib import Path

from peili.mirror import Gone, Have, PeiliError, StoreUnavailable
from peili.mirror.inventory import Inventory
from peili.stores.containerd.api import Api
from peili.stores.containerd.content import is_readable
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
        content_root: the directory of the content store; None where it can't be read.
        connected: whether containerd answers, and the inventory is in step with it.
    """

    def __init__(self, api: Api, options: Options, inventory: Inventory, log: logging.Logger) -> None:
        self.listing = Listing()
        self.namespaces: tuple[str, ...] = options.namespaces
        self.content_root: Path | None = None
        self.connected = False
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
                self.content_root = await self._find_content()
                await self._follow(events)
        except* PeiliError as lost:
            reason = str(lost.exceptions[0])
        return reason

    async def _find_content(self) -> Path | None:
        root = self._options.content_path or await self._api.content_root()
        return root if root is not None and is_readable(root) else None

    async def _listen(self, events: asyncio.Queue[Event]) -> None:
        async for envelope in self._api.events(FILTER):
            await events.put(read_event(envelope))
        raise StoreUnavailable("containerd ended its events")

    async def _follow(self, events: asyncio.Queue[Event]) -> None:
        pace = Pace(quick=self.content_root is None)
        while True:
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
        # Two calls of stat on the loop, as in `_find_content`: containerd's content store is on a local disk, and a
        # thread would cost more than they do.
        if self.content_root is None:
            return ()
        return tuple(_modified(self.content_root / "blobs" / algorithm) for algorithm in ("sha256", "sha512"))

    def _tell_connected(self) -> None:
        self.connected = True
        where = f"from {self.content_root}" if self.content_root else "through its API, its directory can't be read"
        self._tell(logging.INFO, f"following containerd on {self._options.socket}; content is read {where}")

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
