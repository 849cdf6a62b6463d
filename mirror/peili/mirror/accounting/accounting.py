"""`Accounting`: what came from where, what was saved, and which images were pulled."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from peili.mirror.accounting.byte_counts import History, Received, RequestedContent
from peili.mirror.accounting.pulls import Pull, Pulls
from peili.mirror.metrics.counters import FROM_PEER, FROM_STORE, LOCAL, PEER, Metrics
from peili.mirror.metrics.requests import RequestRecord
from peili.mirror.oci.references import Digest
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.content import Have, StoreEvent
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.tasks import Backoff, keep_running

_TICK = 1.0
"""Seconds between two looks for pulls that have ended, while there are any."""
_RECENT = 32
"""How many ended pulls are remembered."""


class Accounting:
    """Counts what the runtime of one mirror received. The doors and the store report to it.

    The log, ``/status`` and the metrics read it. It keeps its numbers when the mirror is exited and entered again. For
    use on the mirror's loop; `totals` may be called from any thread. Its tables are bounded, so that it may forget
    content from upstream in a very large pull.

    Args:
        metrics: Counts the bytes that the doors send, and those from upstream.
        log: Receives one line for each image that was pulled.
        clock: Returns the time in seconds, of which only differences count.

    Attributes:
        history: The bytes of each minute.
        recent: The pulls that have ended, the newest last.
        started: When it was constructed, in seconds since 1970.
    """

    def __init__(self, metrics: Metrics, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self.history = History()
        self.recent: deque[Pull] = deque(maxlen=_RECENT)
        self.started = time.time()
        self._metrics = metrics
        self._log = log
        self._pulls = Pulls(clock)
        self._requested = RequestedContent()
        self._has_pulls = asyncio.Event()

    def totals(self) -> Received:
        """Return all bytes so far."""
        sent = self._metrics.sent.value
        return Received(
            store=int(sent(LOCAL, FROM_STORE)),
            peers=int(sent(LOCAL, FROM_PEER)),
            upstream=int(self._metrics.upstream_bytes.value()),
            served=int(sent(PEER, FROM_STORE)),
        )

    def ended(self, record: RequestRecord) -> None:
        """Record a request at the local door that has ended."""
        if not record.repository or not record.is_get:
            return
        digest = record.digest
        # After 403, too: this host does not decide who may pull, so the runtime asks the registry.
        is_missed = digest is not None and (
            record.answer in {"missing", "failed", "cut", "none"} or record.status == 403
        )
        if digest is not None and record.source != FROM_STORE:
            self._requested.note(digest, record.sent, is_missed=is_missed)
            if record.is_wrong:
                self._requested.discarded(digest)
        self._pulls.note(record, is_missed=is_missed)
        self._has_pulls.set()

    def arrived(self, digest: Digest, size: int) -> None:
        """Record that the store has the whole content of `digest` now."""
        count = self._requested.arrived(digest, size)
        if count is None:
            return
        if count:
            self._metrics.upstream_bytes.add(amount=count)
            self._metrics.upstream_blobs.add()
        self._pulls.arrived(digest, count)

    async def run(self, context: Context) -> None:
        """Follow the store and the pulls until this is cancelled. A store that fails is followed again after a delay.

        Args:
            context: The mirror's context.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._end_pulls())
            tasks.create_task(self._follow_store(context))

    @property
    def pulls(self) -> list[Pull]:
        """The pulls in progress."""
        return list(self._pulls)

    def active(self) -> Iterable[RequestRecord]:
        """Return the requests in progress, at both doors."""
        return tuple(self._metrics.active)

    def sample(self) -> None:
        """Bring `history` up to date."""
        self.history.sample(self.totals())

    def minutes(self) -> list[Mapping[str, Any]]:
        """Return the bytes of each minute of the last day for JSON, the oldest minute first."""
        self.sample()
        return [{"start": each.start, **asdict(each.received)} for each in self.history.minutes()]

    async def _end_pulls(self) -> None:
        while True:
            await self._has_pulls.wait()
            while len(self._pulls):
                await asyncio.sleep(_TICK)
                self.sample()
                self.end_pulls()
            self._has_pulls.clear()

    def end_pulls(self) -> None:
        """Log the pulls that have ended."""
        for pull in self._pulls.end({each.repository for each in self._metrics.active if each.door == LOCAL}):
            pull.ended = time.time()
            self.recent.append(pull)
            self._metrics.pulls.add()
            self._log.info("%s", pull.summary(), extra={"event": "pulled", **pull.json()})

    async def _follow_store(self, context: Context) -> None:
        async def follow(backoff: Backoff) -> None:
            async with aclosing(context.store.watch()) as batches:
                async for batch in batches:
                    for event in batch:
                        await self._note_event(event, context)
                    backoff.reset()

        def failed(error: BaseException) -> None:
            context.log.debug("the store can't be followed for the accounting: %r", error)

        await keep_running(follow, Backoff(context.limits.backoff_min, context.limits.backoff_max), failed)

    async def _note_event(self, event: StoreEvent, context: Context) -> None:
        if not isinstance(event, Have) or not isinstance(event.key, Digest) or event.key not in self._requested:
            return
        digest, size = event.key, event.size
        if not event.complete:
            self._pulls.growing(digest)
            return
        if size is None:
            size = (await call(lambda: context.store.describe(digest), context, "the store", about=digest)).size
        self.arrived(digest, size)
