"""One home's part in the fetching of keys: it takes what hosts ask and report, and answers. No I/O.

The state is soft: if it is lost, the worst outcome is one more fetch from upstream. docs/cold-start.md has the rules.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from peili.mirror.limits import Limits
from peili.mirror.membership.directory.decisions import SEVERAL, Decisions
from peili.mirror.membership.directory.fetch_table import FetchTable
from peili.mirror.membership.directory.fetcher import Fetcher
from peili.mirror.membership.directory.fetches import Fetch
from peili.mirror.membership.directory.link_rates import LinkRates
from peili.mirror.membership.directory.records import Records
from peili.mirror.membership.directory.reporters import NEAR_DEPTH, Reporters
from peili.mirror.membership.directory.reviews import Reviews
from peili.mirror.membership.directory.roots import adopt_root, keep_queued
from peili.mirror.membership.directory.slow_hosts import measure_whole
from peili.mirror.peer_api.leases import ClaimRequest, FeedFrom, GoUpstream, Grant, LeaseReport
from peili.mirror.plugins.acquiring import LeaseEnd


class Claims:
    """What one home knows and decides about keys that are being fetched. Used on one event loop.

    Args:
        limits: ``claim_keys``, ``claim_hosts``, ``claim_timeout`` and ``children``.
        records: What hosts have reported to this home.
        zone_of: Returns the zone of a host, if it is known.
        limited: Called with the name of a limit when it is reached.
        clock: Returns a time in seconds that never goes back.

    Attributes:
        table: The keys that are being fetched.
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
        self._records = records
        self._clock = clock
        self._rates = LinkRates()
        self._reporters = Reporters()
        self.table = FetchTable(limits, records, self._rates, zone_of, limited)
        self._reviews = Reviews(self.table, self._rates, limits.claim_timeout)
        self._decisions = Decisions(self._rates, self._reporters)

    def __len__(self) -> int:
        """Return how many hosts fetch or have a key that is being fetched, counted once for each key."""
        return len(self.table)

    def acquire(self, request: ClaimRequest) -> Grant:
        """Decide where a host gets a key.

        A repeated request gets the same answer, unless the feeder has failed, the home has found a better one, or a
        whole holder is free. For a host whose runtime fetches from upstream already, nothing is left to decide.
        """
        now = self._clock()
        self.learn_upstream(request.host, request.upstream_rate)
        entry = self.table.enter(request, now)
        if request.is_fetching:
            if entry is not None:
                adopt_root(*entry, self._rates, now)
            return GoUpstream()
        if entry is None:
            return self._grant_without_entry(request)
        fetch, fetcher = entry
        self.table.follow_records(fetch, now)
        self._reviews.take_complaints(fetch, fetcher, request.failed, now)
        self._reviews.review(fetch, now)
        grant = self._decisions.decide(fetch, fetcher, request.failed, now)
        if fetcher.depth <= NEAR_DEPTH:
            self._reporters.expect_soon(request.host, now)
        return grant

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
        now = self._clock()
        self.learn_upstream(host, upstream_rate)
        self._reporters.note(host, now)
        is_near = False
        superseded: list[str] = []
        for entry in entries:
            fetch = self.table.find(entry.key)
            fetcher = None if fetch is None else fetch.hosts.get(host)
            if fetch is not None and fetcher is not None and entry.end == LeaseEnd.DONE:
                measure_whole(fetch, fetcher, entry.offset, self._rates, now)
            fetch = self.table.take(host, entry, now)
            fetcher = None if fetch is None else fetch.hosts.get(host)
            if fetch is not None and fetcher is not None and entry.end is None and not fetcher.is_whole:
                self._follow(fetch, fetcher, entry, now)
                is_near = is_near or fetcher.depth <= NEAR_DEPTH
                if fetcher.is_superseded:
                    superseded.append(entry.key)
        return superseded, self._reporters.seconds_to_next(host, is_near, now)

    def learn_upstream(self, host: str, rate: float | None) -> None:
        """Record the rate at which `host` has lately received something from upstream; as in `ClaimRequest`."""
        self._rates.learn_upstream(host, rate, self._clock())

    def doubt(self, host: str, key: str) -> None:
        """Record that a root suspects that its path to upstream is slow. A trial costs least for this key."""
        fetch = self.table.find(key)
        if fetch is not None and host in fetch.roots:
            fetch.hosts[host].is_doubted = True

    def settle(self) -> None:
        """Send nobody upstream for a moment, because the members have changed: another home may know more."""
        self._decisions.settle(self._clock())

    def expire(self) -> None:
        """Forget what is too old, and give up hosts that got nothing from upstream. Call it about every second."""
        now = self._clock()
        self._reporters.expire(now)
        for fetch in self.table.fetches():
            self.table.follow_records(fetch, now)
            self._reviews.review(fetch, now)
        self.table.expire(now)

    def _grant_without_entry(self, request: ClaimRequest) -> Grant:
        """Return the answer to a host for which there is no room."""
        whole = [each for each in self._records.holders_of(request.key) if each.available is None]
        whole = [each for each in whole if each.id not in {request.host, *request.failed}]
        return FeedFrom(tuple(whole[:SEVERAL])) if whole else GoUpstream()

    def _follow(self, fetch: Fetch, fetcher: Fetcher, entry: LeaseReport, now: float) -> None:
        """Draw the conclusions from what a host reports that is still receiving."""
        if entry.is_queued:
            if not fetcher.can_share:  # only hosts that show what arrives say this
                fetcher.can_share = True
                fetch.arrange(fetcher.host)
            keep_queued(fetch, fetcher, self._rates, now)
        self._reviews.judge(fetch, fetcher, entry.source_available or 0, now)
        self._reviews.review(fetch, now)
