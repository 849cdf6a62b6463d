"""Asks the router where a transfer should get its content, and reports to the lease that comes with the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from peili.mirror.errors import NotFound, RouterUnavailable, Unavailable
from peili.mirror.metrics.counters import FAILED, HIT, MISS, WAIT, Metrics
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.peers import Holder
from peili.mirror.plugins.acquiring import Feed, Lease, LeaseEnd, Upstream, Wait, Want
from peili.mirror.plugins.calls import CallFailed, call
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.tasks import Tasks, is_own_failure

_T = TypeVar("_T")

_MIN_WAIT = 0.01
"""The shortest wait in seconds. Without it, a `Wait` until a time in the past would cause a busy loop."""
LOOKUP_FACTOR = 2
"""How many times ``lookup_timeout`` a router may take: at the end of that time, its lookup may ask one more peer."""


class LeaseReleases:
    """Releases the leases of all transfers, each in its own task.

    So every lease is released, even if the runtime disconnects, and no request waits for it.

    Args:
        context: The mirror's context, with the relay's log.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tasks = Tasks(context.log)
        self._closed = False

    @property
    def count(self) -> int:
        """The number of leases that are being released."""
        return len(self._tasks)

    async def release(self, lease: Lease, reason: str, digest: Digest) -> None:
        """Release `lease` in the background. After `aclose`, wait for it instead. Does not raise errors of the lease.

        Args:
            lease: The lease.
            reason: A `LeaseEnd` or a `FailureReason`.
            digest: The content that the lease was for.
        """
        if type(lease) is Lease:
            return  # the base class does nothing
        releasing = self._release(lease, reason, digest)
        if self._closed:
            await releasing
        else:
            self._tasks.start(releasing)

    async def drain(self, timeout: float) -> None:
        """Wait for the current releases, at most `timeout` seconds."""
        await self._tasks.drain(timeout)

    async def aclose(self) -> None:
        """Wait ``limits.stop_timeout`` seconds for the current releases, and cancel those that take longer."""
        self._closed = True
        try:
            await self.drain(self._context.limits.stop_timeout)
        finally:  # also if this is cancelled
            if self.count:
                self._context.limited("stop_timeout")
                self._context.log.warning("%d of the router's leases were not released in time", self.count)
                self._tasks.cancel()
                await self.drain(self._context.limits.stop_timeout)

    async def _release(self, lease: Lease, reason: str, digest: Digest) -> None:
        with suppress(CallFailed):
            await call(
                lambda: lease.release(reason),
                self._context,
                "the release of the router's lease",
                about=digest,
                limit="lookup_timeout",
            )


class TransferLease:
    """The router's current lease for one transfer. Its one owner calls `aclose`.

    Args:
        digest: The content of the transfer.
        context: The mirror's context, with the relay's log.
        metrics: Counts the router's answers.
        releases: Releases the leases.

    Attributes:
        end_reason: The reason for the release if the lease were released now; a `LeaseEnd` or a `FailureReason`.
    """

    def __init__(self, digest: Digest, context: Context, metrics: Metrics, releases: LeaseReleases) -> None:
        self.end_reason: str = LeaseEnd.UPSTREAM
        self._digest = digest
        self._context = context
        self._metrics = metrics
        self._releases = releases
        self._lease = Lease()
        self._sends_upstream = False
        self._takes_reports = True

    async def acquire(self, want: Want) -> tuple[Holder, ...]:
        """Ask the router for holders of `want`. While it answers `Wait`, wait and ask again.

        Returns:
            The holders, best first.

        Raises:
            NotFound: The router answers `Upstream`, or fails.
        """
        while True:
            match await self._ask(want):
                case Wait(until):
                    await asyncio.sleep(max(_MIN_WAIT, until - asyncio.get_running_loop().time()))
                case Upstream(lease):
                    await self._replace(lease)
                    self._sends_upstream = True
                    self.end_reason = LeaseEnd.DONE  # the runtime goes upstream, as the router decided
                    raise NotFound(f"no peer has {self._digest}")
                case Feed(holders, lease):
                    await self._replace(lease)
                    return holders

    def abandon(self) -> None:
        """Note that the runtime has left, unless it has all that it wanted."""
        if self.end_reason != LeaseEnd.DONE:
            self.end_reason = LeaseEnd.GONE

    def use(self, holder: Holder) -> None:
        """Tell the lease that the transfer reads from `holder` now, or how much the current one has."""
        self._report(self._lease.use, holder)

    def progress(self, offset: int) -> None:
        """Tell the lease that the runtime has received the bytes before `offset`."""
        self._report(self._lease.progress, offset)

    @property
    def may_be_superseded(self) -> bool:
        """Whether `superseded` may ever return."""
        return type(self._lease).superseded is not Lease.superseded

    async def superseded(self) -> None:
        """Return when the router has a better answer. If the lease raises an error, never return."""
        try:
            await self._lease.superseded()
        except BaseException as error:  # from a plug-in
            if not is_own_failure(error):
                raise
            self._context.log.exception("%s: the router's lease failed to wait", self._digest)
            await asyncio.get_running_loop().create_future()

    async def aclose(self) -> None:
        """Release the lease. One that sends the runtime upstream ends as unused if the runtime is not sent."""
        is_unused = self._sends_upstream and self.end_reason != LeaseEnd.DONE
        reason = LeaseEnd.GONE if is_unused else self.end_reason
        await self._releases.release(self._lease, reason, self._digest)

    async def _ask(self, want: Want) -> Feed | Wait | Upstream:
        """Return the router's answer, within the time that a lookup may take. Raises NotFound."""
        started = time.monotonic()
        router = self._context.router
        name = f"{type(router).__name__}.acquire"
        answer: object = None  # a plug-in may return anything
        try:
            answer = await call(
                partial(router.acquire, want),
                self._context,
                name,
                about=want.key,
                limit="lookup_timeout",
                seconds=LOOKUP_FACTOR * self._context.limits.lookup_timeout + router.gather_time,
                allowed=(RouterUnavailable,),
            )
        except Unavailable as error:
            raise NotFound(str(error)) from error
        finally:
            self._metrics.lookups.add(_result(answer))
            self._metrics.lookup_seconds.add(time.monotonic() - started)
        if isinstance(answer, Feed | Wait | Upstream) and _is_well_formed(answer):
            return answer
        right = "not Feed, Wait or Upstream with holders, a lease and a time of the right types"
        self._context.log.error("%s: %s returned %r, %s", want.key, name, answer, right)
        raise NotFound("the router gave no valid answer")

    async def _replace(self, lease: Lease) -> None:
        """Report to `lease` from now on, and release the previous one. The router may return the same lease again."""
        if lease is self._lease:
            return
        previous, reason = self._lease, self.end_reason
        self._lease, self.end_reason, self._takes_reports = lease, LeaseEnd.UPSTREAM, True
        self._sends_upstream = False
        await self._releases.release(previous, reason, self._digest)

    def _report(self, report: Callable[[_T], None], news: _T) -> None:
        """Report to the lease. If it raises an error once, it gets no more reports."""
        if not self._takes_reports:
            return
        try:
            report(news)
        except BaseException as error:
            if not is_own_failure(error):
                raise
            self._takes_reports = False
            self._context.log.exception("%s: the router's lease failed to take progress", self._digest)


def _is_well_formed(answer: Feed | Wait | Upstream) -> bool:
    """Return whether the fields of a router's answer have the right types. A plug-in may put in anything."""
    match answer:
        case Feed(holders, lease):
            return _is_a(holders, Sequence) and _is_a(lease, Lease) and all(_is_a(each, Holder) for each in holders)
        case Wait(until):
            return _is_a(until, (int, float))
        case Upstream(lease):
            return _is_a(lease, Lease)


def _is_a(value: object, kind: type[Any] | tuple[type[Any], ...]) -> bool:
    return isinstance(value, kind)


def _result(answer: object) -> str:
    """Return the label of a router's answer in the metrics."""
    match answer:
        case Feed():
            return HIT
        case Wait():
            return WAIT
        case Upstream():
            return MISS
        case _:
            return FAILED
