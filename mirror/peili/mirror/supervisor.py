"""Enters and leaves a plug-in in a task of its own.

So `async with Mirror` works whatever task it is entered and left in, and a plug-in that fails, at once or later, is
entered again after a pause while the mirror and its host go on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from peili.mirror.limits import Limits
from peili.mirror.plugins.interfaces import Context, Plugin
from peili.mirror.support.backoff import Backoff


class Supervisor:
    """Keeps one plug-in entered, from its making until `stop`, which may be called again.

    `again` is called whenever it was entered once more.
    """

    def __init__(
        self, plugin: Plugin, context: Context, limits: Limits, log: logging.Logger, again: Callable[[], None]
    ) -> None:
        self._plugin = plugin
        self._context = context
        self._limits = limits
        self._log = log
        self._again = again
        self._stopping = asyncio.Event()
        self.tried = asyncio.Event()
        """Set once the plug-in was entered, or failed to be, for the first time."""
        self.entered = False
        self._task = asyncio.create_task(self._run(), name=f"peili {type(plugin).__name__}")

    async def stop(self) -> None:
        """Leave the plug-in; cancelled when it takes longer than `stop_timeout`. Does not raise."""
        self._stopping.set()
        try:
            await asyncio.wait({self._task}, timeout=self._limits.stop_timeout)
        finally:  # where this is cancelled, too
            if not self._task.done():
                self._context.limited("stop_timeout")
                self._log.warning("%s does not stop; cancelled", type(self._plugin).__name__)
                self._task.cancel()
                await asyncio.wait({self._task}, timeout=self._limits.stop_timeout)

    async def _run(self) -> None:
        current = asyncio.current_task()
        backoff = Backoff(self._limits.backoff_min, self._limits.backoff_max)
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                await self._enter()
            except asyncio.CancelledError:
                if current is None or current.cancelling():
                    raise
                self._failed(backoff.delay)  # cancelled by something of its own: nobody asked this task to end
            except Exception:  # noqa: BLE001 - a stranger's plug-in may raise anything, and the host lives on
                self._failed(backoff.delay)
            finally:
                self.entered = False
                self.tried.set()
            await self._sleep(backoff.take())
            if time.monotonic() - began > 2 * self._limits.backoff_max:
                backoff.reset()

    async def _enter(self) -> None:
        async with self._plugin.run(self._context):
            self.entered = True
            if self.tried.is_set():
                self._again()
            self.tried.set()
            await self._stopping.wait()

    def _failed(self, pause: float) -> None:
        what = "failed to leave" if self._stopping.is_set() else f"failed; entered again in {pause:g} s"
        self._log.exception("%s %s", type(self._plugin).__name__, what)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass
