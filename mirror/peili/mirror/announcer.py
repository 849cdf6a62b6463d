"""Tells the router what the store has, from when this host's peer door answers until it drains."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from peili.mirror.errors import Unavailable
from peili.mirror.oci.references import Key, Reference
from peili.mirror.plugins.calls import CallFailed, call
from peili.mirror.plugins.content import Gone, Have, StoreEvent, Synced
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.backoff import Backoff
from peili.mirror.support.tasks import is_cancelled


class Announcer:
    """Advertises and withdraws. Built on a running loop; `stop` ends it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store
        self._router = context.router
        self._selection = context.selection
        self._listening = context.listening
        self._limits = context.limits
        self._log = context.log
        self._announced: set[Key] = set()
        self._unsure: set[Key] = set()  # the router was told, and failed: it may know them all the same
        self._stopping = False
        self._task = self._begin(None)

    @property
    def advertised(self) -> int:
        """How many keys the router was told of."""
        return len(self._announced)

    def restart(self) -> None:
        """The router has begun anew: tell it everything once more."""
        if not self._stopping:
            self._task.cancel()
            self._task = self._begin(self._task)

    async def stop(self) -> None:
        """Withdraw everything. Does not raise. One that was cancelled can be called again."""
        self._stopping = True
        self._task.cancel()
        _, late = await asyncio.wait({self._task}, timeout=self._limits.stop_timeout)
        if late:
            self._log.warning("the store's watch does not end; going on without it")
        if not self._announced and not self._unsure:
            return
        keys = self._announced | self._unsure
        try:
            await call(
                lambda: self._router.withdraw(keys),
                self._context,
                "the router's withdraw",
                limit="stop_timeout",
                allowed=(Unavailable,),
            )
        except CallFailed:
            pass  # it was logged
        except Unavailable as error:
            self._log.warning("could not withdraw: %s", error)
        self._announced.clear()
        self._unsure.clear()

    def _begin(self, before: asyncio.Task[None] | None) -> asyncio.Task[None]:
        return asyncio.create_task(self._run(before), name="peili announcer")

    async def _run(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before}, timeout=self._limits.stop_timeout)
        await self._listening()
        backoff = Backoff(self._limits.backoff_min, self._limits.backoff_max)
        while True:
            try:
                stale = self._announced | self._unsure  # of an earlier watch: what this one does not tell again is gone
                async with aclosing(self._store.watch()) as batches:
                    async for batch in batches:
                        stale.difference_update(event.key for event in batch if isinstance(event, Have))
                        await self._tell(batch)
                        if any(isinstance(event, Synced) for event in batch):
                            await self._tell([Gone(key) for key in stale])
                            stale.clear()
                        backoff.reset()
            except (Exception, asyncio.CancelledError) as error:  # strangers' code, and the host lives on
                if is_cancelled(error):
                    raise
                self._log.warning("could not advertise: %s; again in %g s", str(error) or repr(error), backoff.delay)
            await backoff.sleep()

    async def _tell(self, batch: Sequence[StoreEvent]) -> None:
        have = [event for event in batch if isinstance(event, Have) and self._selected(event.key)]
        gone = [event.key for event in batch if isinstance(event, Gone)]
        if gone:
            await self._router.withdraw(gone)
            self._announced.difference_update(gone)
            self._unsure.difference_update(gone)
        if have:
            keys = {event.key for event in have}
            self._unsure |= keys
            await self._router.advertise(have)
            self._unsure -= keys
            self._announced |= keys

    def _selected(self, key: Key) -> bool:
        """Whether the peer door would serve it. A digest does not say where it is from."""
        return not isinstance(key, Reference) or self._selection.allows(key.registry, key.repository, key.tag)
