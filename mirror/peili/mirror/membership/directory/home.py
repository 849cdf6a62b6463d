"""This host as a home: what it knows about the keys of others, and what it decides about them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from peili.mirror.errors import Aborted, NotFound, Unavailable
from peili.mirror.membership.directory.claims import Claims
from peili.mirror.membership.directory.records import Records
from peili.mirror.membership.own_keys import describe_own
from peili.mirror.metrics.counters import HIT, MISS, SUPERSEDED, WAIT
from peili.mirror.oci.references import Key, parse_key
from peili.mirror.peer_api.directory import HoldersAnswer, HoldersQuery, Holdings, KnownHolder
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
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.single_flight import SingleFlight
from peili.mirror.support.tasks import Tasks, is_cancelled

_ANSWERS: Mapping[type[Grant], str] = {FeedFrom: HIT, GoUpstream: MISS, WaitFor: WAIT}
"""The names of grants in the metrics."""
_MAX_HOLDERS = 16
"""How many complete holders an answer names, besides those of the grant."""
_OWN_TIME = 0.1
"""Seconds in which the store of this host must say whether it has a key. An answer that takes longer comes too late."""
_MAX_OWN = 32
"""How many questions the store of this host gets at the same time for others. Its own runtime needs the store, too."""
_UNKNOWN = KnownHolder("")
"""Stands for a store that does not say whether it has the content."""


class Home:
    """The records and the claims of one home. For use on one loop.

    Args:
        context: The router's context.
        tasks: Owns the questions to the store of this host.
        zone_of: Returns the zone of a host, if it is known.
        first_home: Returns the id of the first home of a key, as this host sees it; None if there are no homes.

    Attributes:
        records: Which hosts have which keys.
        claims: Which host fetches a key from upstream, and who feeds whom.
    """

    def __init__(
        self,
        context: Context,
        tasks: Tasks,
        zone_of: Callable[[str], str | None],
        first_home: Callable[[str], str | None],
    ) -> None:
        self._store_slots = asyncio.Semaphore(_MAX_OWN)
        self._describing = SingleFlight[tuple[str, bool], KnownHolder | None](tasks)
        self.records = Records(context.identity, context.limits, context.limited)
        self.claims = Claims(context.limits, self.records, zone_of=zone_of, limited=context.limited)
        self._context = context
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

    async def holders(self, query: HoldersQuery, *, is_proven: bool) -> HoldersAnswer:
        """Return what this home knows about a key, its own store included; see `acquire_for`."""
        answer = self.records.find(query.key, query.known)
        return await self._with_own(query.key, query.known, answer, is_proven=is_proven)

    async def acquire_for(self, query: AcquireQuery, *, is_proven: bool) -> Granted | OtherHome:
        """Answer another host as `acquire` does. Unless the grant names a holder, the store of this host is asked, too.

        The records have what the store has just got only after the next report of this host to itself.

        Args:
            query: What the other host asks.
            is_proven: Whether it has proven who it is. If not, it is told only what is open.
        """
        answer = self.acquire(query)
        if isinstance(answer, OtherHome) or isinstance(answer.grant, FeedFrom):
            return answer
        known = await self._with_own(query.request.key, query.known, answer.known, is_proven=is_proven)
        return replace(answer, known=known)

    async def _with_own(
        self, text: str, versions: Collection[str], answer: HoldersAnswer, *, is_proven: bool
    ) -> HoldersAnswer:
        """Return `answer` with this host as a holder, if it has the whole content and no such holder is known.

        If the store does not say in time whether it has the content, the answer leaves open whether this host has it.
        """
        if any(each.available is None for each in answer.holders):
            return answer
        try:
            key = parse_key(text)
        except ValueError:
            return answer
        try:  # many hosts may ask for the same at once
            own = await self._describing.call((text, is_proven), lambda: self._describe_own(key, is_proven=is_proven))
        except Unavailable:
            own = _UNKNOWN
        if own is None:
            return answer
        if own is _UNKNOWN:
            open_answer = self.records.find(text, versions, is_own_known=False)
            return replace(answer, version=open_answer.version, hosts=open_answer.hosts)
        others = (each for each in answer.holders if each.id != self._identity)
        return replace(answer, holders=(own, *others))

    async def _describe_own(self, key: Key, *, is_proven: bool) -> KnownHolder | None:
        """Return this host as a holder if its store has the content, None if not, and `_UNKNOWN` if it does not say."""
        try:
            async with Deadline(_OWN_TIME), self._store_slots:
                own = await describe_own(self._context, key, is_proven=is_proven)
        except NotFound:
            return None
        except (Exception, asyncio.CancelledError) as error:  # a plug-in may raise anything
            if is_cancelled(error):
                raise
            if not isinstance(error, (Aborted, Unavailable, TimeoutError)):
                self._log.exception("%s: the store failed", key)
            return _UNKNOWN
        return KnownHolder(self._identity, own.size)

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
