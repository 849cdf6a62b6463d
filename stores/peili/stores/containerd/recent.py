"""Asks containerd about single blobs and images that have just changed, because a list of everything comes later.

containerd < 2.1 sends no event when a blob is complete, but it moves the file of the blob into its directory. That is
just before it records the blob, so the question is repeated a few times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeAlias

from peili.mirror import Digest, NotFound, StoreUnavailable
from peili.stores.containerd.api import ContainerdApi
from peili.stores.containerd.inotify import ArrivalNotifier
from peili.stores.containerd.inotify_limits import InotifyLimit
from peili.stores.containerd.listing import (
    BlobCreated,
    ContainerdEvent,
    ImageChanged,
    ImageFound,
    NamespaceChanged,
    parse_target,
)

MAX_RECENT = 64
"""How many blobs and images are asked about. If there are more, a list of everything costs less."""
DELAYS = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""Seconds before each question about one blob or image. After the last one, the next list shows it."""
SAFETY_INTERVAL = 2.0
"""Seconds after which directories are watched again, for what a notifier can't see, such as a new mount."""

_ALGORITHMS = ("sha256", "sha512")
_Changed: TypeAlias = Digest | ImageChanged


class RecentChanges:
    """Finds out what has just changed in the served namespaces, and reports it as events.

    Args:
        api: The connection to containerd.
        report: Receives `BlobCreated` and `ImageFound`, and `NamespaceChanged` if everything should be listed.
        namespaces: Returns the served namespaces, new ones included. Raises StoreUnavailable.
        is_known: Returns whether a blob is known already.
        reached: Called each time that a limit of inotify is reached.
    """

    def __init__(
        self,
        api: ContainerdApi,
        report: Callable[[ContainerdEvent], Awaitable[None]],
        namespaces: Callable[[], Awaitable[Collection[str]]],
        is_known: Callable[[Digest], bool],
        reached: Callable[[InotifyLimit], None] = lambda limit: None,
    ) -> None:
        self._api = api
        self._report = report
        self._namespaces = namespaces
        self._is_known = is_known
        self._reached = reached
        self._questions: dict[_Changed, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None  # while `run` runs

    async def run(self, content_root: Path | None) -> None:
        """Ask until cancelled. Notice the files of new blobs in the content store, if it is known where that is."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                if content_root is not None:
                    with closing(ArrivalNotifier(self._reached)) as notifier:
                        await self._notice(content_root, notifier)
                await asyncio.Event().wait()  # for the questions about images
        finally:
            self._tasks = None

    def ask(self, changed: _Changed) -> bool:
        """Begin to ask about a blob or an image. Returns False if nothing can be asked now."""
        self.cancel(changed)  # what is about to be learned may be out of date
        if self._tasks is None or len(self._questions) >= MAX_RECENT:
            return False
        question = self._questions[changed] = self._tasks.create_task(self._ask_repeatedly(changed))
        question.add_done_callback(lambda done: self._forget(changed, done))
        return True

    def cancel(self, changed: _Changed) -> None:
        """End the questions about a blob or an image, if there are any."""
        if (question := self._questions.pop(changed, None)) is not None:
            question.cancel()

    def _forget(self, changed: _Changed, question: asyncio.Task[None]) -> None:
        if self._questions.get(changed) is question:
            del self._questions[changed]

    async def _notice(self, root: Path, notifier: ArrivalNotifier) -> None:
        """Ask about each blob whose file appears, until cancelled."""
        directories = (root.parent, root, root / "blobs", *(root / "blobs" / each for each in _ALGORITHMS))
        for directory in directories:  # the first list of everything shows what is there
            notifier.watch(directory)
        while True:
            new = [each for each in directories if notifier.watch_new(each)]
            arrived = notifier.take()
            for directory in new:  # it may have got files before it was watched
                arrived += await asyncio.to_thread(_list, directory)
            await self._ask_about(arrived)
            await notifier.wait(SAFETY_INTERVAL)

    async def _ask_about(self, files: Collection[Path]) -> None:
        for digest in filter(None, map(_digest_of, files)):
            if not self._is_known(digest) and not self.ask(digest):
                await self._report(NamespaceChanged(""))
                return

    async def _ask_repeatedly(self, changed: _Changed) -> None:
        for delay in DELAYS:
            await asyncio.sleep(delay)
            try:
                found = await (self._blob(changed) if isinstance(changed, Digest) else self._image(changed))
            except NotFound:
                continue
            except StoreUnavailable:
                return  # the next list shows it
            for each in found:
                await self._report(each)
            return

    async def _blob(self, digest: Digest) -> list[ContainerdEvent]:
        """Ask about a blob. Raises NotFound."""
        if self._is_known(digest):
            return []
        for namespace in await self._namespaces():
            with suppress(NotFound):
                info = await self._api.info(namespace, digest)
                return [BlobCreated(namespace, digest, info.size)]
        raise NotFound(f"containerd has no content {digest} yet")

    async def _image(self, changed: ImageChanged) -> list[ContainerdEvent]:
        """Ask about an image and its manifest. Raises NotFound."""
        if changed.namespace not in await self._namespaces():
            return []
        target = parse_target(await self._api.image(changed.namespace, str(changed.reference)))
        if target is None:
            return []
        return [*await self._blob(target.digest), ImageFound(changed.namespace, changed.reference, target)]


def _digest_of(file: Path) -> Digest | None:
    """Return the digest of the blob in a file; None if it is no file of a blob."""
    with suppress(ValueError):
        if file.parent.name in _ALGORITHMS:
            return Digest(f"{file.parent.name}:{file.name}")
    return None


def _list(directory: Path) -> list[Path]:
    with suppress(OSError):
        return [*directory.iterdir()]
    return []
