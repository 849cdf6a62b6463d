"""What a home decides: which host fetches a key from upstream, and who feeds whom. A state machine without I/O.

The state is soft: if it is lost, the worst outcome is one more fetch from upstream. docs/cold-start.md has the rules.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from peili.mirror.errors import FailureReason
from peili.mirror.limits import Limits
from peili.mirror.membership.directory.fan_out import MAX_DEPTH, Links, choose_fan_out
from peili.mirror.membership.directory.fetches import Fetch, Fetcher
from peili.mirror.membership.directory.records import Records
from peili.mirror.peer_api.directory import KnownHolder
from peili.mirror.peer_api.leases import ClaimRequest, FeedFrom, GoUpstream, Grant, LeaseReport, WaitFor
from peili.mirror.plugins.interfaces import LeaseEnd

MAX_ROOTS = 3
"""How many hosts fetch a key from upstream for the others at the same time."""
_SETTLE_TIME = 0.25
"""Seconds for which nobody is sent upstream after the members have changed …"""
_MAX_SETTLE_TIME = 1.0
"""… and for how long this keeps one host waiting in all."""
_REFUSED_TIME = 60.0
"""Seconds for which a host that was sent upstream and got nothing is not waited for again."""
_STALLED_TIME = 15.0
"""Seconds without a byte after which a root is no longer relied on."""
_FORGET_TIME = 60.0
"""Seconds after which a host that says nothing about a key is forgotten."""
_SEVERAL = 4
"""How many whole holders a host gets at most."""
_REPORT_INTERVAL = 0.5


class Claims:
    """The decisions of one home. Used on one event loop.

    Args:
        limits: ``claim_keys``, ``claim_hosts``, ``claim_timeout`` and ``children``.
        records: What hosts have reported to this home.
        zone_of: Returns the zone of a host, if it is known.
        limited: Called with the name of a limit when it is reached.
        clock: Returns a time in seconds that never goes back.
    """

    def __init__(
        self,
        limits: Limits,
        records: Records,
        *,
        zone_of: Callable[[str], str | None],
        limited: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._records = records
        self._zone_of = zone_of
        self._limited = limited
        self._clock = clock
        self._links = Links()
        self._fetches: dict[str, Fetch] = {}
        self._count = 0
        self._refused: dict[str, float] = {}  # hosts that got nothing from upstream, until when that counts
        self._settled = 0.0

    def __len__(self) -> int:
        """Return how many hosts fetch something, counted once for each key."""
        return self._count

    def acquire(self, request: ClaimRequest) -> Grant:
        """Decide where a host gets a key. The answer to a repeated request is the same unless its feeder has failed."""
        fetch, fetcher = self._enter(request)
        if fetch is None or fetcher is None:
            return GoUpstream()  # nobody waits for it
        self._learn_failures(fetch, request)
        self._follow_records(fetch)
        if fetcher.is_root and not fetcher.is_superseded:
            return GoUpstream()
        whole = [each for each in self._whole(fetch, request) if each.id != request.host]
        kept = fetcher.feeders and not fetcher.is_superseded and not set(fetcher.feeders) & request.failed.keys()
        if kept and (not whole or any(each.id in fetcher.feeders for each in whole)):
            return self._feed(fetch, fetcher, fetcher.feeders)
        fetcher.is_superseded = False
        if whole:
            count = _SEVERAL if len(fetch.hosts) == 1 else 1
            return self._feed(fetch, fetcher, tuple(each.id for each in whole[:count]))
        feeder = self._choose_feeder(fetch, fetcher, request)
        if feeder is not None:
            return self._feed(fetch, fetcher, (feeder.host,))
        return self._send_upstream(fetch, fetcher)

    def report(
        self, host: str, entries: Sequence[LeaseReport], upstream_rate: float | None = None
    ) -> tuple[list[str], float]:
        """Record what became of the grants of `host`.

        Args:
            host: The id of the host.
            entries: Its reports.
            upstream_rate: As in `ClaimRequest`.

        Returns:
            The keys for which the host should ask again, and the seconds until its next report.
        """
        for entry in entries:
            self._take(host, entry)
        fetches = [self._fetches[each.key] for each in entries if each.key in self._fetches]
        superseded = [each.key for each in fetches if host in each.hosts and each.hosts[host].is_superseded]
        return superseded, _REPORT_INTERVAL

    def settle(self) -> None:
        """Send nobody upstream for a moment, because the members have changed: another home may know more."""
        self._settled = self._clock() + _SETTLE_TIME

    def expire(self) -> None:
        """Forget what is too old, and give up hosts that got nothing from upstream. Call it about every second."""
        now = self._clock()
        self._refused = {host: until for host, until in self._refused.items() if until > now}
        for fetch in list(self._fetches.values()):
            self._follow_records(fetch)
            for host in [each.host for each in fetch.hosts.values() if each.heard + _FORGET_TIME <= now]:
                self._forget(fetch, host)

    def _enter(self, request: ClaimRequest) -> tuple[Fetch | None, Fetcher | None]:
        """Record the request. Returns None if there is no room."""
        fetch = self._fetches.get(request.key)
        fetcher = None if fetch is None else fetch.hosts.get(request.host)
        if fetch is None or fetcher is None:
            if fetch is None and len(self._fetches) >= self._limits.claim_keys:
                self._limited("claim_keys")
                return None, None
            if self._count >= self._limits.claim_hosts:
                self._limited("claim_hosts")
                return None, None
            fetch = self._fetches.setdefault(request.key, Fetch(request.key))
            fetcher = self._add(fetch, request.host)
        fetch.size = fetch.size or request.size
        fetcher.can_share = request.can_share
        self._grow(fetcher, request.offset)
        fetcher.heard, fetcher.is_silent = self._clock(), False
        return fetch, fetcher

    def _add(self, fetch: Fetch, host: str) -> Fetcher:
        now = self._clock()
        self._count += 1
        fetcher = fetch.hosts[host] = Fetcher(host, self._zone_of(host), since=now, heard=now, grew=now)
        return fetcher

    def _forget(self, fetch: Fetch, host: str) -> None:
        if host in fetch.hosts:
            fetch.remove(host)
            self._count -= 1
        if not fetch.hosts:
            self._fetches.pop(fetch.key, None)

    def _grow(self, fetcher: Fetcher, offset: int) -> None:
        if offset > fetcher.offset:
            fetcher.offset, fetcher.grew, fetcher.heard = offset, self._clock(), self._clock()
            fetcher.is_silent = False

    def _take(self, host: str, entry: LeaseReport) -> None:
        fetch = self._fetches.get(entry.key)
        fetcher = None if fetch is None else fetch.hosts.get(host)
        if fetch is None or fetcher is None:
            return
        fetcher.heard = self._clock()
        self._grow(fetcher, entry.offset)
        if entry.end == LeaseEnd.GONE:
            self._forget(fetch, host)
        elif entry.end == LeaseEnd.DONE and not fetcher.is_root:
            fetcher.is_whole = True
            fetch.feed(fetcher, ())

    def _learn_failures(self, fetch: Fetch, request: ClaimRequest) -> None:
        for host, reason in request.failed.items():
            if reason == FailureReason.WRONG:
                fetch.barred |= {host, request.host}
            elif reason in {FailureReason.SILENT, FailureReason.UNREACHABLE} and host in fetch.hosts:
                fetch.hosts[host].is_silent = True

    def _follow_records(self, fetch: Fetch) -> None:
        """Take over what the hosts have reported about their stores, and give up roots that got nothing."""
        for holder in self._records.holders_of(fetch.key):
            fetcher = fetch.hosts.get(holder.id)
            if holder.available is None:
                if fetcher is not None:
                    fetcher.is_whole = True
                continue
            if fetcher is None and holder.available > 0 and self._count < self._limits.claim_hosts:
                fetcher = self._add(fetch, holder.id)
                fetcher.can_share = True
            if fetcher is not None:
                self._grow(fetcher, holder.available)
        now = self._clock()
        for fetcher in [each for each in fetch.hosts.values() if each.is_root]:
            if not fetcher.offset and fetcher.since + self._limits.claim_timeout <= now:
                self._refused[fetcher.host] = now + _REFUSED_TIME
                fetcher.is_root = False
                for child in fetch.children.get(fetcher.host, ()):
                    fetch.hosts[child].is_superseded = True

    def _whole(self, fetch: Fetch, request: ClaimRequest) -> list[KnownHolder]:
        """Return the whole holders with room for `request`: those of its zone first, then the least loaded ones."""
        zone, most = self._zone_of(request.host), self._fan_out(fetch)
        ids = {each.id for each in self._records.holders_of(fetch.key) if each.available is None}
        ids |= {each.host for each in fetch.hosts.values() if each.is_whole}
        free = [
            each for each in ids - request.failed.keys() if len(fetch.children.get(each, set()) - {request.host}) < most
        ]
        free.sort(key=lambda each: (self._zone_of(each) != zone, fetch.count_children(each), each))
        return [KnownHolder(each, fetch.size) for each in free]

    def _fan_out(self, fetch: Fetch) -> int:
        roots = sum(each.is_root for each in fetch.hosts.values())
        return choose_fan_out(fetch.size, len(fetch.hosts), roots, self._links, self._limits.children)

    def _choose_feeder(self, fetch: Fetch, fetcher: Fetcher, request: ClaimRequest) -> Fetcher | None:
        """Return the best host in flight that can feed `fetcher`, if there is one."""
        below = dict(fetch.below(fetcher.host))
        height = max(below.values(), default=0)
        candidates: list[tuple[bool, bool, int, int, Fetcher]] = []
        fan_out = self._fan_out(fetch)
        for each in fetch.hosts.values():
            if each is fetcher or each.host in below or each.host in request.failed or not self._can_feed(fetch, each):
                continue
            path = list(fetch.path(each.host))
            if len(path) + height > MAX_DEPTH or not self._has_more(fetch, each, path, request):
                continue
            count = len(fetch.children.get(each.host, set()) - {fetcher.host})
            if count < self._limits.children:
                candidates.append((count >= fan_out, each.zone != fetcher.zone, len(path), count, each))
        return min(candidates, key=lambda each: each[:4])[-1] if candidates else None

    def _can_feed(self, fetch: Fetch, fetcher: Fetcher) -> bool:
        return fetcher.can_share and not fetcher.is_silent and fetcher.host not in fetch.barred

    def _has_more(self, fetch: Fetch, fetcher: Fetcher, path: Sequence[str], request: ClaimRequest) -> bool:
        """Return whether `fetcher` has bytes beyond those of the request, or gets them from a live root."""
        if fetcher.offset > request.offset:
            return True
        root = fetch.hosts.get(path[-1])
        if root is None or root.is_silent or root.host in request.failed:
            return False
        return root.is_whole or ((root.is_root or root.offset > 0) and root.grew + _STALLED_TIME > self._clock())

    def _feed(self, fetch: Fetch, fetcher: Fetcher, feeders: tuple[str, ...]) -> Grant:
        fetcher.is_root = False
        fetch.feed(fetcher, feeders)
        whole = {each.id for each in self._records.holders_of(fetch.key) if each.available is None}
        holders: list[KnownHolder] = []
        for host in feeders:
            feeder = fetch.hosts.get(host)
            is_whole = host in whole or feeder is None or feeder.is_whole
            holders.append(KnownHolder(host, fetch.size, None if is_whole or feeder is None else feeder.offset))
        return FeedFrom(tuple(holders))

    def _send_upstream(self, fetch: Fetch, fetcher: Fetcher) -> Grant:
        now = self._clock()
        wait = min(self._settled, fetcher.since + _MAX_SETTLE_TIME) - now
        if wait > 0:
            return WaitFor(wait)
        fetch.feed(fetcher, ())
        roots = sum(each.is_root for each in fetch.hosts.values())
        if fetcher.can_share and fetcher.host not in self._refused and roots < MAX_ROOTS:
            fetcher.is_root, fetcher.since, fetcher.grew = True, now, now
        elif not fetcher.offset:
            self._forget(fetch, fetcher.host)
        return GoUpstream()
