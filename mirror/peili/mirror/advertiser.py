"""Advertises what the store has: as soon as this host's peer door answers, and until the mirror is drained."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import aclosing

from peili.mirror.errors import Unavailable
from peili.mirror.oci.references import Key, Reference
from peili.mirror.plugins.calls import CallFailed, call
from peili.mirror.plugins.content import Gone, Have, StoreEvent, Synced
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.tasks import Backoff, keep_running


class Advertiser:
    """Advertises the keys that the store has to the router, and withdraws those that it no longer has.

    Construct it on a running loop: it starts a task, which ends in `stop`.

    Args:
        context: The mirror's context.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._router = context.router
        self._limits = context.limits
        self._log = context.log
        self._advertised: set[Key] = set()
        self._unsure: set[Key] = set()  # advertising these failed, but the router may have recorded them
        self._is_stopping = False
        self._task = self._start(None)

    @property
    def advertised(self) -> int:
        """The number of keys that are advertised."""
        return len(self._advertised)

    def restart(self) -> None:
        """Advertise everything again, because the router was entered again."""
        if not self._is_stopping:
            self._task.cancel()
            self._task = self._start(self._task)

    async def stop(self) -> None:
        """Withdraw everything, in up to twice ``limits.stop_timeout`` seconds. Never raises. Idempotent.

        It takes up to three times as long if the router ignores that it was cancelled.
        """
        self._is_stopping = True
        self._task.cancel()
        _, late = await asyncio.wait({self._task}, timeout=self._limits.stop_timeout)
        if late:
            self._log.warning("the store's watch did not end in time")
        elif not self._task.cancelled() and (error := self._task.exception()) is not None:
            self._log.warning("the store's watch failed to end: %r", error)
        keys = self._advertised | self._unsure
        if not keys:
            return
        withdrawing = asyncio.create_task(self._withdraw(keys))  # its own task: it may ignore its cancellation
        try:
            _, late = await asyncio.wait({withdrawing}, timeout=2 * self._limits.stop_timeout)
        finally:  # also if this is cancelled
            withdrawing.cancel()
        if late:
            self._log.error("%s.withdraw ignores that it was cancelled; not awaited", type(self._router).__name__)
        self._advertised.clear()
        self._unsure.clear()

    async def _withdraw(self, keys: Collection[Key]) -> None:
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

    def _start(self, previous: asyncio.Task[None] | None) -> asyncio.Task[None]:
        return asyncio.create_task(self._run(previous), name="peili advertiser")

    async def _run(self, previous: asyncio.Task[None] | None) -> None:
        """Follow the store forever. If the store or the router fails, start again after a growing delay."""
        if previous is not None:
            await asyncio.wait({previous}, timeout=self._limits.stop_timeout)
        await self._context.listening()
        backoff = Backoff(self._limits.backoff_min, self._limits.backoff_max)

        def failed(error: BaseException) -> None:
            self._log.warning("could not advertise: %s; again in %g s", str(error) or repr(error), backoff.delay)

        await keep_running(self._follow, backoff, failed)

    async def _follow(self, backoff: Backoff) -> None:
        """Pass one watch of the store on to the router."""
        stale = self._advertised | self._unsure  # keys of an earlier watch that this one has not yielded so far
        async with aclosing(self._context.store.watch()) as batches:
            async for batch in batches:
                stale.difference_update(event.key for event in batch if isinstance(event, Have))
                await self._pass_on(batch)
                if any(isinstance(event, Synced) for event in batch):
                    await self._pass_on([Gone(key) for key in stale])
                    stale.clear()
                    await self._router.advertise([Synced()])
                backoff.reset()

    async def _pass_on(self, batch: Sequence[StoreEvent]) -> None:
        have = [event for event in batch if isinstance(event, Have) and self._is_selected(event.key)]
        gone = [event.key for event in batch if isinstance(event, Gone)]
        if gone:
            await self._router.withdraw(gone)
            self._advertised.difference_update(gone)
            self._unsure.difference_update(gone)
        if have:
            keys = {event.key for event in have}
            self._unsure |= keys
            await self._router.advertise(have)
            self._unsure -= keys
            self._advertised |= keys

    def _is_selected(self, key: Key) -> bool:
        """Return whether the peer door would serve `key`. True for a digest, which does not name its registry."""
        if not isinstance(key, Reference):
            return True
        return self._context.selection.allows(key.registry, key.repository, key.tag)
