"""The keys that hosts are fetching, as a home knows them from requests, from reports and from its records. Bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from peili.mirror.errors import FailureReason
from peili.mirror.limits import Limits
from peili.mirror.membership.directory.fetcher import Fetcher
from peili.mirror.membership.directory.fetches import Fetch
from peili.mirror.membership.directory.link_rates import LinkRates
from peili.mirror.membership.directory.records import Records
from peili.mirror.peer_api.directory import KnownHolder
from peili.mirror.peer_api.leases import ClaimRequest, LeaseReport
from peili.mirror.plugins.acquiring import LeaseEnd

_FORGET_TIME = 60.0
"""Seconds after which a host that says nothing about a key is forgotten."""
_IDLE_TIME = 10.0
"""Seconds after which a key that everybody has is forgotten if nobody asks for it."""
_ASKED_TIME = 10.0
"""Seconds for which a host that asks for a key is not believed to have it whole by its older reports."""
_LEAST_SHARE, _SHARES = 16, 8
"""One host can be the first to ask for this many keys, or for this part of all: it can't fill the table alone."""
_GRANT_TIME = 2.0
"""Seconds that a host may need to change to the feeder that it was told to read from."""


class FetchTable:
    """The keys that hosts are fetching.

    Args:
        limits: ``claim_keys``, ``claim_hosts`` and ``children``.
        records: What hosts have reported to this home about their stores.
        rates: Knows which hosts are slow.
        zone_of: Returns the zone of a host, if it is known.
        limited: Called with the name of a limit when it is reached.
    """

    def __init__(
        self,
        limits: Limits,
        records: Records,
        rates: LinkRates,
        zone_of: Callable[[str], str | None],
        limited: Callable[[str], None],
    ) -> None:
        self._limits = limits
        self._records = records
        self._rates = rates
        self._zone_of = zone_of
        self._limited = limited
        self._fetches: dict[str, Fetch] = {}
        self._loads = Counter[str]()
        self._opened = Counter[str]()  # by host, the keys for which it has asked first
        self._count = 0

    def __len__(self) -> int:
        """Return the number of hosts, counted once for each key."""
        return self._count

    def fetches(self) -> Sequence[Fetch]:
        """Return all keys."""
        return tuple(self._fetches.values())

    def find(self, key: str) -> Fetch | None:
        """Return what is known of a key, if hosts are fetching it."""
        return self._fetches.get(key)

    def enter(self, request: ClaimRequest, now: float) -> tuple[Fetch, Fetcher] | None:
        """Record that a host asks for a key. Returns None if there is no room."""
        entry = self._entry(request.key, request.host, now)
        if entry is None:
            return None
        fetch, fetcher = entry
        had_whole = any(
            each.id == request.host and each.available is None for each in self._records.holders_of(fetch.key)
        )
        if fetcher.is_whole:
            self.forget(fetch, fetcher.host)
            fetcher = self._add(fetch, request.host, now)
        fetcher.is_disputed = had_whole  # it would not ask if it were still so
        fetch.asked = fetcher.asked = now
        fetch.size = fetch.size or request.size
        fetcher.can_share, fetcher.follows = request.can_share, request.follows
        fetch.hear(fetcher, now)
        if request.offset < fetcher.offset:
            self._lose(fetch, fetcher, request.offset)
        self._grow(fetch, fetcher, request.offset, now)
        fetch.arrange(fetcher.host)
        return fetch, fetcher

    def take(self, host: str, entry: LeaseReport, now: float) -> Fetch | None:
        """Record what a host reports about a key. Returns None if the key is not known and there is no room."""
        fetch = self._fetches.get(entry.key)
        fetcher = None if fetch is None else fetch.hosts.get(host)
        if fetcher is None and entry.end is None:  # this home was restarted, or replaces another one
            fetch, fetcher = self._entry(entry.key, host, now) or (None, None)
        if fetch is None or fetcher is None:
            return None
        fetch.hear(fetcher, now)
        self._grow(fetch, fetcher, entry.offset, now)
        match entry.end:
            case None:
                self._follow_feeder(fetch, fetcher, entry, now)
            case LeaseEnd.DONE if fetcher.is_root or fetcher.is_whole:
                pass  # its runtime fetches from upstream
            case LeaseEnd.DONE if fetch.size is None or entry.offset >= fetch.size:
                fetch.set_whole(fetcher, now)
            case LeaseEnd.SUPERSEDED:
                pass  # it asks again, and may get the same feeder
            case LeaseEnd.GONE | LeaseEnd.DONE:
                self.forget(fetch, host)
            case FailureReason.WRONG:
                self._lose(fetch, fetcher, 0)
                fetch.feed(fetcher, (), now)
                fetch.supersede_children(host)
            case _ if entry.feeder in fetcher.feeders:
                fetch.feed(fetcher, (), now)
                fetcher.is_starving = True  # until it has asked again, or has got bytes from somewhere else
            case _:
                pass  # it reads from another feeder already
        return fetch

    def follow_records(self, fetch: Fetch, now: float) -> None:
        """Take over what hosts have reported about their stores."""
        holders = self._records.holders_of(fetch.key)
        for gone in fetch.recorded - {each.id for each in holders}:
            fetch.recorded.discard(gone)
            fetch.hosts[gone].is_disputed = False
            if fetch.hosts[gone].is_whole:
                self.forget(fetch, gone)
            elif not fetch.hosts[gone].feeders:
                self._end_ingest(fetch, fetch.hosts[gone])
        for holder in holders:
            fetcher = fetch.hosts.get(holder.id)
            if fetcher is None:
                if holder.available == 0 or self._count >= self._limits.claim_hosts:
                    continue
                fetcher = self._add(fetch, holder.id, now)
                fetcher.can_share = True
            self._follow_record(fetch, fetcher, holder, now)

    def _follow_record(self, fetch: Fetch, fetcher: Fetcher, holder: KnownHolder, now: float) -> None:
        """Take over what a host has reported about its store."""
        fetch.recorded.add(holder.id)
        fetch.size = fetch.size or holder.size
        fetcher.heard = now
        if fetcher.is_silent and self._records.heard_at(holder.id) > fetcher.silent_since:
            fetch.hear(fetcher, now)
        if holder.available is not None:
            if not fetcher.can_share and fetcher.asked < 0:
                fetcher.can_share = True
                fetch.arrange(fetcher.host)
            self._grow(fetch, fetcher, holder.available, now)
            fetcher.is_disputed = False
        elif not fetcher.is_disputed or fetcher.asked + _ASKED_TIME <= now:
            fetch.set_whole(fetcher, now)

    def forget(self, fetch: Fetch, host: str) -> None:
        """Forget that a host fetches a key. Hosts that read from it have to ask again."""
        fetch.supersede_children(host)
        fetch.remove(host)
        self._count -= 1

    def expire(self, now: float) -> None:
        """Forget hosts that have said nothing for long, and keys that nobody fetches."""
        for fetch in self.fetches():
            for host in [each.host for each in fetch.hosts.values() if each.heard + _FORGET_TIME <= now]:
                self.forget(fetch, host)
            if not fetch.active and fetch.asked + _IDLE_TIME <= now:
                for host in tuple(fetch.hosts):
                    self.forget(fetch, host)
                del self._fetches[fetch.key]
                self._opened[fetch.opened_by] -= 1
                if not self._opened[fetch.opened_by]:
                    del self._opened[fetch.opened_by]

    def _entry(self, key: str, host: str, now: float) -> tuple[Fetch, Fetcher] | None:
        """Return the entry of a host for a key, which is made if there is room."""
        fetch = self._fetches.get(key)
        if fetch is not None and host in fetch.hosts:
            return fetch, fetch.hosts[host]
        limit = "claim_keys" if fetch is None and self._is_full(host) else None
        if self._count >= self._limits.claim_hosts:
            limit = "claim_hosts"
        if limit is not None:
            self._limited(limit)
            return None
        if fetch is None:
            fetch = self._fetches[key] = Fetch(key, self._limits.children, self._loads, host)
            self._opened[host] += 1
        return fetch, self._add(fetch, host, now)

    def _is_full(self, host: str) -> bool:
        """Return whether there is no room for a key for which `host` asks first."""
        most = self._limits.claim_keys
        return len(self._fetches) >= most or self._opened[host] >= max(most // _SHARES, _LEAST_SHARE)

    def _add(self, fetch: Fetch, host: str, now: float) -> Fetcher:
        self._count += 1
        fetcher = Fetcher(host, self._zone_of(host) or "", since=now, heard=now, grew=now)
        fetcher.is_slow = self._rates.is_slow(host, now)
        fetch.add(fetcher)
        return fetcher

    def _end_ingest(self, fetch: Fetch, fetcher: Fetcher) -> None:
        """Record that the store of a host that nobody feeds shows nothing any more: its runtime has given up."""
        fetcher.is_starving = True
        fetcher.has_given_up = fetcher.is_root and fetcher.offset <= fetcher.claimed
        self._lose(fetch, fetcher, 0)
        fetch.supersede_children(fetcher.host)

    def _lose(self, fetch: Fetch, fetcher: Fetcher, offset: int) -> None:
        """Record that a host has only `offset` bytes, unless its store shows more."""
        shown = (each.available or 0 for each in self._records.holders_of(fetch.key) if each.id == fetcher.host)
        fetcher.restart(min(fetcher.offset, max(offset, *shown, 0)))
        fetch.arrange(fetcher.host)

    def _grow(self, fetch: Fetch, fetcher: Fetcher, offset: int, now: float) -> None:
        """Record that a host says that it has `offset` bytes. Those on its path then have at least as many."""
        if fetcher.measure(offset, now) and fetcher.is_root:
            self._rates.learn_upstream(fetcher.host, fetcher.rate, now)
        if not fetcher.grow(offset, now):
            return
        fetch.refusals = 0
        fetch.hear(fetcher, now)
        fetch.arrange(fetcher.host)
        below = [fetcher]
        while below:
            feeders = [fetch.hosts[each] for each in below.pop().feeders if each in fetch.hosts]
            below += [each for each in feeders if not each.is_starving and each.grow(offset, now)]

    def _follow_feeder(self, fetch: Fetch, fetcher: Fetcher, entry: LeaseReport, now: float) -> None:
        """Note that a host reads from another one than this home knows."""
        feeder = entry.feeder
        if feeder is None or feeder in fetcher.feeders or fetcher.is_root or fetcher.is_whole:
            return
        is_fresh = fetcher.feeders and fetcher.fed_since + _GRANT_TIME > now
        if is_fresh or fetcher.is_superseded or feeder == fetcher.host or feeder in fetch.below(fetcher.host)[0]:
            return
        fetch.feed(fetcher, (feeder,), now)
