"""What a home decides: which host fetches a key from upstream, and who feeds whom. A state machine without I/O.

The state is soft: if it is lost, the worst outcome is one more fetch from upstream. docs/cold-start.md has the rules.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from peili.mirror.errors import FailureReason
from peili.mirror.limits import KIB, Limits
from peili.mirror.membership.directory.fan_out import Shape, choose_shape
from peili.mirror.membership.directory.feeders import Need, choose_in_flight, choose_whole
from peili.mirror.membership.directory.fetch_table import FetchTable
from peili.mirror.membership.directory.fetcher import Fetcher
from peili.mirror.membership.directory.fetches import Fetch
from peili.mirror.membership.directory.link_rates import LinkRates
from peili.mirror.membership.directory.records import Records
from peili.mirror.membership.directory.roots import (
    MAX_ROOTS,
    SLOW_FACTOR,
    choose_root,
    dead_ends,
    lagging_roots,
    needs_root,
    unproven_roots,
)
from peili.mirror.membership.directory.slow_hosts import blame_feeder, judge_link
from peili.mirror.peer_api.directory import KnownHolder
from peili.mirror.peer_api.leases import ClaimRequest, FeedFrom, GoUpstream, Grant, LeaseReport, WaitFor
from peili.mirror.plugins.acquiring import LeaseEnd

_SETTLE_TIME = 0.25
"""Seconds for which nobody is sent upstream after the members have changed."""
_MAX_SETTLE_TIME = 1.0
"""Seconds for which such changes keep one host waiting in all."""
_FOLLOW_TIME, _MAX_FOLLOW_TIME = 2.0, 5.0
"""Seconds for which a host that follows another one waits for that one to ask first, and if such hosts ask just now."""
_LEAD_TIME = 1.0
"""Seconds after a host that follows nobody was sent upstream for some key, in which it may ask for more."""
_FULL_TIME = 2.0
"""Seconds for which a host that can't be a root waits until a feeder is free."""
_WAIT = 0.25
"""Seconds until such a host asks again."""
_ACTIVE_TIME = 2.0
"""Seconds for which a host counts as active after its last report."""
_REFUSED_TIME = 60.0
"""Seconds for which a host that was sent upstream and got nothing is not waited for again."""
_MAX_REFUSALS = 3
"""After so many of them in a row, nobody is waited for: upstream does not answer."""
_SEVERAL = 4
"""How many whole holders a host gets at most."""
_REPORT_INTERVAL, _MAX_REPORT_INTERVAL = 0.5, 10.0
"""Seconds between two reports of a host, at least and at most."""
_REPORTS_PER_SECOND = 100
"""How many reports a home receives from all hosts together. With more hosts, each reports less often."""


_MEASURED_SIZE = 512 * KIB
"""The smallest content from whose whole transfer a rate is learnt."""
_SHORTEST_TIME = 0.001
_LIMITED_HOPS = 5
"""If a whole holder needs longer than this many hops for small content, its uplink was the limit."""
_NEAR_DEPTH = 5
"""Hosts as near as this to a root report as often as if there were few hosts: many depend on them."""


class Claims:
    """The decisions of one home. Used on one event loop.

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
        self._limits = limits
        self._records = records
        self._clock = clock
        self._rates = LinkRates()
        self.table = FetchTable(limits, records, self._rates, zone_of, limited)
        self._refused: dict[str, float] = {}  # hosts that got nothing from upstream, until when that counts
        self._reporters: dict[str, float] = {}  # hosts that report, and when they last did
        self._near: dict[str, float] = {}  # hosts whose next report should come soon, until when that counts
        self._settled = float("-inf")
        self._led = float("-inf")  # when a host that follows nobody was last sent upstream

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
        fetch, fetcher = self.table.enter(request, now)
        if request.is_fetching:
            self._adopt(fetch, fetcher, now)
            return GoUpstream()
        if fetch is None or fetcher is None:
            whole = [each for each in self._records.holders_of(request.key) if each.available is None]
            whole = [each for each in whole if each.id not in {request.host, *request.failed}]
            return FeedFrom(tuple(whole[:_SEVERAL])) if whole else GoUpstream()
        self.table.follow_records(fetch, now)
        self._learn_failures(fetch, fetcher, request)
        self._review(fetch, now)
        need = self._need(fetch, fetcher, now, request.failed)
        grant = self._kept(fetch, need) or self._decide(fetch, need)
        if fetcher.depth <= _NEAR_DEPTH:
            self._near[request.host] = now + _REPORT_INTERVAL  # its first report comes soon
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
        self._reporters[host] = now
        is_near = self._near.get(host, now) > now
        superseded: list[str] = []
        for entry in entries:
            self._learn_speed(host, entry, now)
            fetch = self.table.take(host, entry, now)
            if fetch is None:
                continue
            fetcher = fetch.hosts.get(host)
            if fetcher is not None and entry.end is None and not fetcher.is_whole:
                if entry.is_queued:
                    self._wait_for_queued(fetch, fetcher, now)
                slow = judge_link(fetch, fetcher, entry.source_available or 0, self._rates, now)
                if slow is not None:
                    slow = fetcher if slow is fetcher else blame_feeder(fetch, slow, fetcher, self._rates)
                    self._avoid(fetch, slow, now)
                self._review(fetch, now)
                is_near = is_near or fetcher.depth <= _NEAR_DEPTH
                if fetcher.is_superseded:
                    superseded.append(entry.key)
        interval = _REPORT_INTERVAL if is_near else len(self._reporters) / _REPORTS_PER_SECOND
        return superseded, min(max(interval, _REPORT_INTERVAL), _MAX_REPORT_INTERVAL)

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
        self._settled = self._clock() + _SETTLE_TIME

    def expire(self) -> None:
        """Forget what is too old, and give up hosts that got nothing from upstream. Call it about every second."""
        now = self._clock()
        self._refused = {host: until for host, until in self._refused.items() if until > now}
        recent = now - 2 * _MAX_REPORT_INTERVAL
        self._near = {host: until for host, until in self._near.items() if until > now}
        self._reporters = {host: at for host, at in self._reporters.items() if at > recent}
        for fetch in self.table.fetches():
            self.table.follow_records(fetch, now)
            self._review(fetch, now)
        self.table.expire(now)

    def _adopt(self, fetch: Fetch | None, fetcher: Fetcher | None, now: float) -> None:
        """Make a host a root that went upstream without a grant of this home, unless there are enough roots."""
        if fetch is None or fetcher is None or fetcher.is_root or not fetcher.can_share:
            return
        if len(fetch.live_roots(now)) < MAX_ROOTS and fetcher.host not in self._refused:
            _make_root(fetch, fetcher, now)

    def _wait_for_queued(self, fetch: Fetch, fetcher: Fetcher, now: float) -> None:
        """Take note of a host that was sent upstream and fetches other content first.

        If this home was restarted and knows of no root, it makes the host one again, so that it sends nobody else.
        """
        if not fetcher.can_share:  # only hosts that show what arrives say this
            fetcher.can_share = True
            fetch.arrange(fetcher.host)
        if not fetch.live_roots(now):
            self._adopt(fetch, fetcher, now)
        fetcher.postpone(now)

    def _learn_speed(self, host: str, entry: LeaseReport, now: float) -> None:
        """Learn the rate of a transfer that is done. Those of small content are too short for any other report."""
        fetch = self.table.find(entry.key)
        fetcher = None if fetch is None else fetch.hosts.get(host)
        if fetch is None or fetcher is None:
            return
        received = entry.offset - fetcher.fed_offset
        if entry.end == LeaseEnd.DONE and received >= _MEASURED_SIZE:
            for name in fetcher.feeders[:1]:
                seconds = max(now - fetcher.fed_since, _SHORTEST_TIME)
                feeder, children = fetch.hosts.get(name), len(fetch.children[name])
                was_whole = feeder is not None and feeder.is_whole and feeder.whole_since <= fetcher.fed_since
                is_limited = was_whole and seconds > _LIMITED_HOPS * self._rates.links(None, now).hop
                rate = received / seconds * (children if is_limited else 1)
                self._rates.learn_uplink(name, rate, is_limited, now)

    def _learn_failures(self, fetch: Fetch, fetcher: Fetcher, request: ClaimRequest) -> None:
        """Take over complaints about feeders that are new."""
        now = self._clock()
        new = request.failed.keys() - fetcher.failed
        fetcher.failed = frozenset(request.failed)
        for host in new & fetch.hosts.keys():
            feeder = fetch.hosts[host]
            match request.failed[host]:
                case FailureReason.SILENT | FailureReason.UNREACHABLE:
                    feeder.is_silent = True
                case FailureReason.STARVING | FailureReason.REFUSED if not feeder.is_whole:
                    feeder.is_starving = True
                case FailureReason.WRONG:
                    for end in (feeder, fetcher):
                        end.is_barred = True
                        if not end.is_whole:
                            fetch.supersede_children(end.host)
                case FailureReason.SLOW:
                    self._avoid(fetch, blame_feeder(fetch, feeder, fetcher, self._rates), now)
                case _:
                    continue
            fetch.arrange(host)
            for each in feeder.feeders:
                fetch.arrange(each)

    def _avoid(self, fetch: Fetch, slow: Fetcher, now: float) -> None:
        """Let `slow` feed nobody, if other hosts can."""
        if slow.is_slow:
            return
        self._rates.mark_slow(slow.host, now)
        if not self._rates.is_slow(slow.host, now):
            return
        slow.is_slow, slow.is_moved_last = True, True
        for host in (slow.host, *slow.feeders):
            fetch.arrange(host)
        self._move(fetch, fetch.children.get(slow.host, ()), now)

    def _move(self, fetch: Fetch, hosts: Collection[str], now: float) -> None:
        """Let those of `hosts` ask again for which there is a better feeder."""
        for each in [fetch.hosts[host] for host in hosts if host in fetch.hosts]:
            need = self._need(fetch, each, now)
            better = None if each.is_superseded else choose_in_flight(fetch, need)
            is_better = better is not None and better.host not in each.feeders and better.path_end not in need.lagging
            if better is not None and is_better and fetch.is_live(better.path_end, now):
                fetch.supersede(each)

    def _review(self, fetch: Fetch, now: float) -> None:
        """Give up roots without bytes, choose a further root if one is needed, and move hosts to the best chain."""
        for failed in unproven_roots(fetch, self._rates, self._limits.claim_timeout, now):
            if not failed.was_queued:  # else it gets other content from upstream, and is only late with this one
                self._refused[failed.host] = now + _REFUSED_TIME
            fetch.refusals += 1
            fetch.set_root(failed, False, now)
            fetch.supersede_children(failed.host)
            if fetch.refusals == _MAX_REFUSALS:
                fetch.supersede_all_without_bytes()
        if fetch.reviewed_at + _WAIT > now:
            return
        fetch.reviewed_at = now
        if needs_root(fetch, self._rates, now):
            counts = Counter(host for each in self.table.fetches() for host in each.roots)
            promoted = choose_root(fetch, self._refused, counts.__getitem__)
            if promoted is not None:
                fetch.promoted_at, promoted.is_promoted = now, True
                for root in fetch.live_roots(now):
                    root.is_slow = True
                    fetch.arrange(root.host)
                fetch.supersede(promoted)
        self._use_free_holders(fetch, now)
        for bad in (*lagging_roots(fetch, now), *dead_ends(fetch, now)):
            self._move(fetch, fetch.children.get(bad, ()), now)
        for slow in [each for each in fetch.slow_hosts() if each.is_moved_last and not fetch.children.get(each.host)]:
            slow.is_moved_last = False
            self._move(fetch, [slow.host], now)

    def _use_free_holders(self, fetch: Fetch, now: float) -> None:
        """Let hosts ask again that share an uplink with others, as many as there are whole holders that feed nobody."""
        free = fetch.count_free_holders()
        if not free:
            return
        free -= sum(each.is_superseded for each in fetch.hosts.values())  # they will ask for one soon
        need: Need | None = None
        for each in fetch.sharing()[: max(free, 0)]:
            need = self._need(fetch, each, now) if need is None else replace(need, fetcher=each, failed=each.failed)
            feeder, found = fetch.hosts[each.feeders[0]], choose_whole(fetch, need, 1)
            is_as_near = bool(found) and (found[0].zone == each.zone or feeder.zone != each.zone)
            if is_as_near and not fetch.children.get(found[0].host):
                fetch.supersede(each)

    def _need(self, fetch: Fetch, fetcher: Fetcher, now: float, failed: Collection[str] = ()) -> Need:
        return Need(fetcher, failed or fetcher.failed, self._shape(fetch, now), lagging_roots(fetch, now), now)

    def _shape(self, fetch: Fetch, now: float) -> Shape:
        """Return how hosts are to feed each other.

        A root may get this key slowly for now, because it shares the path with other keys, or has just begun. Others
        would share uplinks for that as long as the key takes. So what the root gets in all counts.
        """
        live = fetch.live_roots(now)
        known = [max(each.rate_at(now) or 0.0, self._rates.upstream_of(each.host, now)) for each in live]
        rates = [rate for rate in known if rate]
        sources = len(live) + len(fetch.hosts) - fetch.active
        links = self._rates.links(max(rates, default=None), now)
        return choose_shape(fetch.size, fetch.active, sources, links, self._limits.children)

    def _kept(self, fetch: Fetch, need: Need) -> Grant | None:
        """Return the answer that the host has already, if it is still good."""
        fetcher = need.fetcher
        if fetcher.is_root:
            is_good = fetch.is_live(fetcher.host, need.now) and fetcher.host not in need.lagging
            return GoUpstream() if is_good else None
        feeders = [fetch.hosts[each] for each in fetcher.feeders if each in fetch.hosts and each not in need.failed]
        if not feeders or len(feeders) < len(fetcher.feeders) or fetcher.is_superseded:
            return None
        if all(each.is_whole for each in feeders):
            return self._feed(fetch, fetcher, feeders)
        [feeder] = feeders
        can_wait = not feeder.is_starving and fetch.is_live(feeder.path_end, need.now)
        if not (can_wait or feeder.offset > fetcher.offset) or choose_whole(fetch, need, 1):
            return None
        return self._feed(fetch, fetcher, feeders)

    def _decide(self, fetch: Fetch, need: Need) -> Grant:
        fetcher, now = need.fetcher, need.now
        fetch.supersede(fetcher)  # its share of the old feeder's uplink is free from now on
        if fetcher.is_promoted and len(fetch.live_roots(now)) < MAX_ROOTS:
            return self._send_upstream(fetch, need)
        free = choose_whole(fetch, need, max(1, _SEVERAL // fetch.active))
        if free:
            return self._feed(fetch, fetcher, free)
        feeder = choose_in_flight(fetch, need)
        return self._send_upstream(fetch, need) if feeder is None else self._feed(fetch, fetcher, (feeder,))

    def _feed(self, fetch: Fetch, fetcher: Fetcher, feeders: Sequence[Fetcher]) -> Grant:
        fetcher.is_superseded = fetcher.is_starving = False
        fetcher.waits_since = None
        if fetcher.is_root:
            fetch.set_root(fetcher, False, self._clock())
        fetch.feed(fetcher, tuple(each.host for each in feeders), self._clock())
        for each in feeders:
            fetch.arrange(each.host)
        return FeedFrom(
            tuple(KnownHolder(each.host, fetch.size, None if each.is_whole else each.offset) for each in feeders)
        )

    def _should_yield(self, fetch: Fetch, fetcher: Fetcher, now: float) -> bool:
        """Return whether another host should be the first root, and may ask in a moment.

        A host that follows another one waits for it. containerd 2.1 and later ask for all layers at once, but fetch
        only three at a time. If each host were the root of some layers, all would wait for layers that nobody fetches.
        If there was a root, it has got nothing or is gone, and nobody is ahead any more.

        The root of the last layers has them first, so it also asks for the next one first. If its path to upstream is
        slow, it would slow down all layers. So it waits once, too.
        """
        if fetch.roots:
            return False
        if fetcher.follows and not fetch.had_root:
            fetcher.waits_since = now if fetcher.waits_since is None else fetcher.waits_since
            is_led = self._led + _LEAD_TIME > now
            return fetcher.waits_since + (_MAX_FOLLOW_TIME if is_led else _FOLLOW_TIME) > now
        rate = self._rates.upstream_of(fetcher.host, now)
        if not rate or self._rates.possible_uplink(now) < SLOW_FACTOR * rate:
            return False
        others = self._rates.upstream_of_others(fetcher.host, 0.0, now)
        if others is not None and others < SLOW_FACTOR * rate:
            return False
        are_others_active = any(at + _ACTIVE_TIME > now for host, at in self._reporters.items() if host != fetcher.host)
        fetcher.waits_since = now if fetcher.waits_since is None else fetcher.waits_since
        return are_others_active and fetcher.waits_since + _WAIT > now

    def _send_upstream(self, fetch: Fetch, need: Need) -> Grant:
        fetcher, now = need.fetcher, need.now
        wait = min(self._settled, fetcher.since + _MAX_SETTLE_TIME) - now
        if wait > 0:
            return WaitFor(wait)
        if self._should_yield(fetch, fetcher, now):
            return WaitFor(_WAIT)
        live = fetch.live_roots(now)
        is_able = fetcher.can_share and fetcher.host not in self._refused
        is_waited_for = is_able and len(live) < MAX_ROOTS and fetch.refusals < _MAX_REFUSALS
        if not is_waited_for and any(each.host not in need.failed for each in live):
            fetcher.waits_since = now if fetcher.waits_since is None else fetcher.waits_since
            if fetcher.waits_since + _FULL_TIME > now:
                return WaitFor(_WAIT)
        fetcher.is_superseded = fetcher.is_promoted = False
        if is_waited_for:
            _make_root(fetch, fetcher, now)
        else:
            fetch.feed(fetcher, (), now)
        if not fetcher.follows:
            self._led = now
        return GoUpstream()


def _make_root(fetch: Fetch, fetcher: Fetcher, now: float) -> None:
    """Make a host a root. Roots from which nothing can be expected are none any more."""
    for host in fetch.roots.keys() - {each.host for each in fetch.live_roots(now)}:
        fetch.set_root(fetch.hosts[host], False, now)  # it may come back, but not as one too many
    fetch.set_root(fetcher, True, now)
