"""The leases of this host: what homes have granted to it, and the reports on what became of that.

All transfers of one key on this host count as one. A home gets one message for all keys, at the interval that it asks
for, and soon after a transfer has ended. Each message has the whole state, so a home that has lost it learns it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice

from typing_extensions import override

from peili.mirror.membership.directory.upstream_rates import UpstreamFetches
from peili.mirror.peer_api.leases import MAX_REPORTS, LeaseReport, LeaseReports, LeasesAnswer
from peili.mirror.peer_api.peers import Holder
from peili.mirror.plugins.acquiring import Lease, LeaseEnd, Want
from peili.mirror.support.tasks import Broadcast, Tasks

_GATHER_TIME = 0.05
"""Seconds for which the ends of transfers are gathered into one message."""
_MIN_INTERVAL, _MAX_INTERVAL = 0.1, 60.0
"""The bounds of the seconds between two messages to a home."""
_FLUSH_TIME = 0.5
"""Seconds in which the last ends are sent when the router is exited."""
_MAX_FAILURES = 3
"""After so many messages that failed, the ends of transfers are no longer sent."""
_MAX_ENDS = 4 * MAX_REPORTS
"""How many ends of transfers wait for one home."""


class _HeldKey:
    """What this host does with one key.

    Attributes:
        key: The key.
        home: The id of the home that gets the reports; None before the first answer.
        asking: How many calls are asking a home for the key now.
        leases: The leases that were not released yet.
        unused: Homes whose grants are not used. They are told when nobody is asking any more.
        offset: All bytes before this one were received.
        feeder: The id of the host that the newest source reads from.
        source_available: How many bytes that host had when it last said so.
        superseded: Set when the home has a better answer than the current one.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.home: str | None = None
        self.asking = 0
        self.leases: set[Lease] = set()
        self.unused: set[str] = set()
        self.offset = 0
        self.feeder: str | None = None
        self.source_available: int | None = None
        self.superseded = asyncio.Event()

    def report(self, end: str | None = None) -> LeaseReport:
        """Return the report on this key."""
        return LeaseReport(self.key, self.offset, self.feeder, end, self.source_available)


class Leases:
    """All leases of this host. For use on one loop.

    Args:
        tasks: Owns the tasks that report.
        send: Sends reports to the home with this id. Returns None if that failed.
        id_of: Returns the id of a member by its name, if it is known.
        upstream: Learns for which keys the runtime goes upstream.
        is_drained: Returns whether nobody should begin to read from this host. Homes then forget what it receives.

    Attributes:
        id_of: As above.
        upstream: As above.
    """

    def __init__(
        self,
        tasks: Tasks,
        send: Callable[[str, LeaseReports], Awaitable[LeasesAnswer | None]],
        id_of: Callable[[str], str | None],
        upstream: UpstreamFetches,
        is_drained: Callable[[], bool] = lambda: False,
    ) -> None:
        self.id_of = id_of
        self._tasks = tasks
        self._send = send
        self._is_drained = is_drained
        self.upstream = upstream
        self._held: dict[str, _HeldKey] = {}
        self._links: dict[str, _ReportLink] = {}

    def __len__(self) -> int:
        """Return the number of keys with a lease, or for which a home is being asked."""
        return len(self._held)

    @contextmanager
    def asking(self, key: str) -> Generator[None]:
        """Note that a home is being asked for `key`. Until this ends, nothing that a home has granted is undone."""
        held = self._held.setdefault(key, _HeldKey(key))
        held.asking += 1
        for link in self._links.values():  # an earlier end must not arrive after the new question
            if link.ends.pop(key, None) is not None:
                link.changes.notify()
        try:
            yield
        finally:
            held.asking -= 1
            self._settle(held)

    def grant_feed(self, key: str, home: str, interval: float) -> Lease:
        """Return a lease for a grant of `home` to read from other hosts."""
        held = self._grant(key, home, interval)
        self.upstream.end(key)
        if held.superseded.is_set():
            held.superseded = asyncio.Event()
        lease = _FeedLease(self, held)
        held.leases.add(lease)
        return lease

    def grant_upstream(self, want: Want, home: str, interval: float) -> Lease:
        """Return a lease for a grant of `home` to go upstream."""
        return self._go_upstream(want, self._grant(str(want.key), home, interval), home)

    def take_upstream(self, want: Want) -> Lease:
        """Return a lease for a host that goes upstream without a grant, because no home has answered."""
        key = str(want.key)
        return self._go_upstream(want, self._held.setdefault(key, _HeldKey(key)), None)

    def _go_upstream(self, want: Want, held: _HeldKey, home: str | None) -> Lease:
        self.upstream.begin(held.key, home=home, size=want.size, can_share=want.can_share)
        lease = _UpstreamLease(self, held)
        held.leases.add(lease)
        return lease

    def undo(self, key: str, home: str) -> None:
        """Tell `home` that its grant is not used, unless a transfer of this host uses it."""
        held = self._held.setdefault(key, _HeldKey(key))
        held.unused.add(home)
        self._settle(held)

    def move(self, home_of: Callable[[str, str], str | None]) -> None:
        """Report to other homes from now on.

        Args:
            home_of: Returns the new home of a key, from the key and its home now. None: it has none.
        """
        for held in self._held.values():
            home = None if held.home is None else home_of(held.key, held.home)
            if home is not None and home != held.home:
                held.home = home
                self._link(home)

    def report_to(self, home: str) -> None:
        """Report to `home` from now on, as long as there is something to report."""
        self._link(home)

    async def flush(self) -> None:
        """Wait until the homes were told which transfers have ended, for a moment. Call it before the tasks end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_TIME):
                for link in [*self._links.values()]:
                    await link.flush()

    def release(self, held: _HeldKey, lease: Lease, reason: str, *, was_fed: bool) -> None:
        """End `lease`. If it was the last one of its key, the home is told soon."""
        held.leases.discard(lease)
        if reason == LeaseEnd.DONE and self._is_drained():
            reason = LeaseEnd.GONE  # else homes would take this host for a holder
        if was_fed:
            self._leave_feeder(held)
        if held.leases:
            return
        # A host that was sent upstream keeps its claim, and its store shows what becomes of it.
        if held.key not in self.upstream if was_fed else reason == LeaseEnd.GONE:
            fetch = self.upstream.find(held.key)
            told = {held.home, None if fetch is None else fetch.home} - {None}
            self.upstream.end(held.key)
            for home in told:
                if home is not None:
                    self._tell_end(held, home, reason)
        self._settle(held)

    def _leave_feeder(self, held: _HeldKey) -> None:
        """Tell the home that nobody feeds this host any more, if it would learn that from nothing else.

        This host goes upstream without a grant of that home. If it can show what it receives, `Takeover` tells homes.
        """
        fetch = self.upstream.find(held.key)
        if fetch is None or fetch.home is not None or fetch.can_share or held.home is None:
            return
        if not any(isinstance(each, _FeedLease) for each in held.leases):
            self._tell_end(held, held.home, LeaseEnd.GONE)
            held.home = held.feeder = None

    def _tell_end(self, held: _HeldKey, home: str, reason: str) -> None:
        if held.asking:
            held.unused.add(home)
        else:
            self._end(home, held.report(reason))

    def _grant(self, key: str, home: str, interval: float) -> _HeldKey:
        held = self._held.setdefault(key, _HeldKey(key))
        held.home = home
        self._link(home).set_interval(interval)
        return held

    def _settle(self, held: _HeldKey) -> None:
        """Tell homes whose grants are not used, and forget the key if there is nothing to know about it."""
        if held.asking:
            return
        for home in held.unused:
            is_used = held.home == home and bool(held.leases)
            fetch = self.upstream.find(held.key)
            if not is_used and (fetch is None or not (fetch.can_share or fetch.home)):
                self._end(home, LeaseReport(held.key, 0, end=LeaseEnd.GONE))
        held.unused.clear()
        if not held.leases and self._held.get(held.key) is held:
            del self._held[held.key]

    def _end(self, home: str, report: LeaseReport) -> None:
        link = self._link(home)
        link.ends[report.key] = report
        if len(link.ends) > _MAX_ENDS:
            del link.ends[next(iter(link.ends))]
        link.wake.set()

    def _link(self, home: str) -> _ReportLink:
        """Return the link to a home. Its task ends when there is nothing to report."""
        link = self._links.get(home)
        if link is None:
            link = self._links[home] = _ReportLink()
            self._tasks.start(self._run(home, link))
        return link

    def _current(self, home: str) -> list[LeaseReport]:
        """Return reports on the transfers that a home should know about, or forget."""
        fed = (each for each in self._held.values() if each.home == home and each.leases)
        reports = [each.report() for each in fed if each.key not in self.upstream]
        if self._is_drained():
            reports += [LeaseReport(each.key, 0) for each in self.upstream.unstarted(home)]
            return [replace(each, end=LeaseEnd.GONE) for each in reports]
        if self.upstream.is_busy:
            reports += [LeaseReport(each.key, 0, is_queued=True) for each in self.upstream.unstarted(home)]
        return reports

    def _is_involved(self, home: str) -> bool:
        """Return whether there is, or may soon be, something to report to a home."""
        return any(each.home == home for each in self._held.values()) or bool(self.upstream.unstarted(home))

    async def _run(self, home: str, link: _ReportLink) -> None:
        try:
            while True:
                await link.wait()
                if not link.ends and not self._is_involved(home):
                    return
                await self._report(home, link)
        finally:
            if self._links.get(home) is link:
                del self._links[home]
            link.ends.clear()
            link.changes.notify()

    async def _report(self, home: str, link: _ReportLink) -> None:
        """Send one message, and more if there is more to report than fits into one."""
        ends = list(islice(link.ends.values(), MAX_REPORTS))
        ended = {each.key for each in ends}
        pending = [*ends, *(each for each in self._current(home) if each.key not in ended)]
        for start in range(0, len(pending), MAX_REPORTS):
            batch = pending[start : start + MAX_REPORTS]
            answer = await self._send(home, LeaseReports(tuple(batch), self.upstream.best_rate()))
            if answer is None:
                link.failures += 1
                break
            link.failures = 0
            link.set_interval(answer.interval)
            for key in answer.superseded:
                if (held := self._held.get(key)) is not None and held.home == home:
                    held.superseded.set()
        if not link.failures or link.failures >= _MAX_FAILURES:
            for each in ends:
                if link.ends.get(each.key) is each:
                    del link.ends[each.key]
            link.changes.notify()
        if link.ends and not link.failures:
            link.wake.set()


class _ReportLink:
    """The reports to one home.

    Attributes:
        ends: The ends of transfers that it was not told yet, by key.
        failures: How many messages have failed since the last one that did not.
        wake: Set when there is something to send soon.
        changes: Notified when `ends` were sent, or given up.
    """

    def __init__(self) -> None:
        self.ends: dict[str, LeaseReport] = {}
        self.failures = 0
        self.wake = asyncio.Event()
        self.changes = Broadcast()
        self._interval = 1.0

    def set_interval(self, seconds: float) -> None:
        """Set the seconds between two messages."""
        self._interval = min(max(seconds, _MIN_INTERVAL), _MAX_INTERVAL)

    async def wait(self) -> None:
        """Wait until the next message is due."""
        try:
            async with asyncio.timeout(self._interval):
                await self.wake.wait()
                await asyncio.sleep(_GATHER_TIME)
        except TimeoutError:
            pass
        self.wake.clear()

    async def flush(self) -> None:
        """Wait until all ends were sent or given up."""
        while self.ends:
            changed = self.changes.next_change
            await changed.wait()


class _FeedLease(Lease):
    """The lease of a transfer that reads from other hosts."""

    def __init__(self, leases: Leases, held: _HeldKey) -> None:
        self._leases = leases
        self._held = held
        self._superseded = held.superseded

    @override
    def use(self, holder: Holder) -> None:
        self._held.feeder = self._leases.id_of(holder.peer.id)
        self._held.source_available = holder.available

    @override
    def progress(self, offset: int) -> None:
        self._leases.upstream.note_bytes()
        self._held.offset = max(self._held.offset, offset)

    @override
    async def superseded(self) -> None:
        await self._superseded.wait()

    @override
    async def release(self, reason: str) -> None:
        self._leases.release(self._held, self, reason, was_fed=True)


class _UpstreamLease(Lease):
    """The lease of a transfer whose runtime was sent upstream."""

    def __init__(self, leases: Leases, held: _HeldKey) -> None:
        self._leases = leases
        self._held = held

    @override
    async def release(self, reason: str) -> None:
        self._leases.release(self._held, self, reason, was_fed=False)
