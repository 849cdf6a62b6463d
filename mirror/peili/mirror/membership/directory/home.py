"""This host as a home: what it knows about the keys of others, and what it decides about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from peili.mirror.membership.directory.claims import Claims
from peili.mirror.membership.directory.records import Records
from peili.mirror.metrics.counters import HIT, MISS, SUPERSEDED, WAIT
from peili.mirror.peer_api.directory import HoldersAnswer, Holdings
from peili.mirror.peer_api.leases import (
    AcquireQuery,
    FeedFrom,
    GoUpstream,
    Grant,
    Granted,
    LeaseReports,
    LeasesAnswer,
    OtherHome,
    WaitFor,
)
from peili.mirror.plugins.interfaces import Context

_ANSWERS: Mapping[type[Grant], str] = {FeedFrom: HIT, GoUpstream: MISS, WaitFor: WAIT}
"""The names of grants in the metrics."""
_MAX_HOLDERS = 16
"""How many complete holders an answer names, besides those of the grant."""


class Home:
    """The records and the claims of one home. For use on one loop.

    Args:
        context: The router's context.
        zone_of: Returns the zone of a host, if it is known.
        first_home: Returns the id of the first home of a key, as this host sees it; None if there are no homes.

    Attributes:
        records: Which hosts have which keys.
        claims: Which host fetches a key from upstream, and who feeds whom.
    """

    def __init__(
        self, context: Context, zone_of: Callable[[str], str | None], first_home: Callable[[str], str | None]
    ) -> None:
        self.records = Records(context.identity, context.limits, context.limited)
        self.claims = Claims(context.limits, self.records, zone_of=zone_of, limited=context.limited)
        self._identity = context.identity
        self._log = context.log
        self._granted = context.granted
        self._first_home = first_home

    def acquire(self, query: AcquireQuery) -> Granted | OtherHome:
        """Say where a host gets a key. Only the first home of the key decides, unless the query is final."""
        request = query.request
        first = None if query.is_final else self._first_home(request.key)
        if first is not None and first != self._identity:
            return OtherHome(first)
        grant = self.claims.acquire(request)
        if not request.is_fetching:
            self._granted(_ANSWERS[type(grant)])
        self._log.debug("as a home: %s to %s", grant, request)
        known = self.records.find(request.key, query.known)
        complete = tuple(each for each in known.holders if each.available is None)[:_MAX_HOLDERS]
        _, interval = self.claims.report(request.host, ())
        return Granted(grant, HoldersAnswer(complete, known.version, known.hosts), interval)

    def take(self, host: str, message: Holdings) -> bool:
        """Record what `host` reports about itself. Returns whether the message was accepted; see `Records.apply`."""
        self.claims.learn_upstream(host, message.upstream_rate)
        if message.doubted is not None:
            self.claims.doubt(host, message.doubted)
        return self.records.apply(host, message)

    def report(self, host: str, message: LeaseReports) -> LeasesAnswer:
        """Record what became of the grants of a host."""
        superseded, interval = self.claims.report(host, message.reports, message.upstream_rate)
        for key in superseded:
            self._granted(SUPERSEDED)
            self._log.debug("as a home: %s should ask for %s again", host, key)
        return LeasesAnswer(tuple(superseded), interval)

    def expire(self) -> None:
        """Forget what is too old. Call it about every second."""
        self.records.expire()
        self.claims.expire()
