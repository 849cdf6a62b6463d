"""Gives leases back to their router. Which lease, when and why is the transfer's matter."""

from __future__ import annotations

import logging

from peili.mirror.limits import Limits
from peili.mirror.metrics.counters import Metrics
from peili.mirror.oci.references import Digest
from peili.mirror.plugins.advice import Lease
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.tasks import Tasks


class LeaseReleases:
    """The leases that are being given back during one stay in a mirror, each in a task of its own.

    So what ends a request, be it the runtime's leaving or the answer's end, ends no release: a router hears of each.
    """

    def __init__(self, limits: Limits, metrics: Metrics, log: logging.Logger) -> None:
        self._limits = limits
        self._metrics = metrics
        self._log = log
        self._tasks = Tasks(log)
        self._closed = False

    @property
    def under_way(self) -> int:
        """How many leases are being given back."""
        return len(self._tasks)

    async def give_back(self, lease: Lease, reason: str, digest: Digest) -> None:
        """Release `lease`, which was for `digest`; does not wait for that, and does not fail.

        Only after `aclose`, when nobody else would, the caller waits.
        """
        if type(lease) is Lease:
            return  # it records nothing
        releasing = self._release(lease, reason, digest)
        if self._closed:
            await releasing
        else:
            self._tasks.start(releasing)

    async def drain(self, timeout: float) -> None:
        """Wait for the releases under way to end, `timeout` seconds at most."""
        await self._tasks.drain(timeout)

    async def aclose(self) -> None:
        """Wait ``limits.stop_timeout`` seconds for the releases under way, and cancel those that last longer."""
        self._closed = True
        try:
            await self.drain(self._limits.stop_timeout)
        finally:  # where this is cancelled, too
            if self.under_way:
                self._metrics.limited.add("stop_timeout")
                self._log.warning("%d of the router's leases were not released before the end", self.under_way)
                self._tasks.cancel()
                await self.drain(self._limits.stop_timeout)

    async def _release(self, lease: Lease, reason: str, digest: Digest) -> None:
        bound = Deadline(self._limits.lookup_timeout)
        try:
            async with bound:
                await lease.release(reason)
        except Exception:  # noqa: BLE001 - a stranger's code
            if not bound.expired():
                self._log.exception("%s: the router's lease failed to be released", digest)
                return
            self._metrics.limited.add("lookup_timeout")
            self._log.warning("%s: the router's lease was not released in time", digest)
