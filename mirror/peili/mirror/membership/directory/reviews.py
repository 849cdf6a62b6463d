"""What a home changes while content arrives: who goes upstream, and which hosts should ask again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

from peili.mirror.errors import FailureReason
from peili.mirror.membership.directory.feeders import Need, choose_in_flight, choose_whole, describe_need
from peili.mirror.membership.directory.fetch_table import FetchTable
from peili.mirror.membership.directory.fetcher import Fetcher
from peili.mirror.membership.directory.fetches import Fetch
from peili.mirror.membership.directory.link_rates import LinkRates
from peili.mirror.membership.directory.roots import (
    MAX_REFUSALS,
    choose_root,
    dead_ends,
    held_up_roots,
    lagging_roots,
    needs_root,
    unproven_roots,
)
from peili.mirror.membership.directory.slow_hosts import blame_feeder, is_stuck, judge_link

_INTERVAL = 0.25
"""Seconds from one review of a key to the next. Roots that got nothing are given up at any time."""
_MAX_ACCUSED = 2
"""How many feeders of a key a host can accuse of wrong bytes. If there are more, it probably changes them itself."""


class Reviews:
    """Reviews keys that are being fetched. A host learns from the answer to its next report that it should ask again.

    Args:
        table: The keys.
        rates: How fast hosts and upstream are.
        claim_timeout: ``limits.claim_timeout``.
    """

    def __init__(self, table: FetchTable, rates: LinkRates, claim_timeout: float) -> None:
        self._table = table
        self._rates = rates
        self._claim_timeout = claim_timeout

    def review(self, fetch: Fetch, now: float) -> None:
        """Give up roots without bytes, choose a further root if one is needed, and move hosts to the best chain."""
        self._give_up_roots(fetch, now)
        if fetch.reviewed_at + _INTERVAL > now:
            return
        fetch.reviewed_at = now
        self._promote(fetch, now)
        self._use_free_holders(fetch, now)
        for bad in (*lagging_roots(fetch, now), *dead_ends(fetch, now)):
            self._move(fetch, fetch.children.get(bad, ()), now)
        for slow in [each for each in fetch.slow_hosts() if each.is_moved_last and not fetch.children.get(each.host)]:
            slow.is_moved_last = False
            self._move(fetch, [slow.host], now)

    def take_complaints(self, fetch: Fetch, fetcher: Fetcher, failed: Mapping[str, str], now: float) -> None:
        """Draw the conclusions from the complaints of a host about feeders. Those about others count for it alone.

        Args:
            fetch: The key.
            fetcher: The host that complains.
            failed: As in `ClaimRequest`. Only what it has not said before counts.
            now: The time.
        """
        new = failed.keys() - fetcher.failed
        fetcher.failed = frozenset(failed)
        for host in [each for each in fetcher.fed_by if each in new and each in fetch.hosts]:
            feeder = fetch.hosts[host]
            match failed[host]:
                case FailureReason.SILENT | FailureReason.UNREACHABLE:
                    feeder.is_silent, feeder.silent_since = True, now
                case FailureReason.STARVING | FailureReason.REFUSED if not feeder.is_whole:
                    feeder.is_starving = True
                case FailureReason.WRONG if _is_believed(fetch, fetcher.host, host):
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

    def judge(self, fetch: Fetch, fetcher: Fetcher, available: int, now: float) -> None:
        """Measure the link over which a host has just reported to read, and avoid its slow end.

        Args:
            fetch: The key.
            fetcher: The host.
            available: How many bytes its feeder had when it last said so.
            now: The time.
        """
        slow = judge_link(fetch, fetcher, available, self._rates, now)
        if slow is None:
            return
        if slow is not fetcher:
            feeder, slow = slow, blame_feeder(fetch, slow, fetcher, self._rates)
            if slow is feeder and feeder.is_root and is_stuck(fetcher, feeder, now):
                feeder.is_starving = True  # until it has got more; before that, another host is sent upstream
                fetch.reviewed_at = float("-inf")
                fetch.arrange(feeder.host)
        self._avoid(fetch, slow, now)

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

    def _give_up_roots(self, fetch: Fetch, now: float) -> None:
        """Wait no longer for roots that have got no byte in time."""
        for failed in unproven_roots(fetch, self._rates, self._claim_timeout, now):
            if not failed.was_queued:  # else it gets other content from upstream, and is only late with this one
                self._rates.mark_unserved(failed.host, now)
            fetch.refusals += 1
            fetch.set_root(failed, False, now)
            fetch.supersede_children(failed.host)
            if fetch.refusals == MAX_REFUSALS:
                fetch.supersede_all_without_bytes()

    def _promote(self, fetch: Fetch, now: float) -> None:
        """Let a further host go upstream, if the roots do too little."""
        if not needs_root(fetch, self._rates, now):
            return
        counts = Counter(host for each in self._table.fetches() for host in each.roots)
        promoted = choose_root(fetch, self._rates, counts.__getitem__, now)
        if promoted is not None:
            for root in held_up_roots(fetch, now):
                root.is_held_up = True
            fetch.promoted_at, promoted.is_promoted = now, True
            for root in fetch.live_roots(now):
                root.is_slow = True
                fetch.arrange(root.host)
            fetch.supersede(promoted)

    def _use_free_holders(self, fetch: Fetch, now: float) -> None:
        """Let hosts ask again that share an uplink with others, as many as there are whole holders that feed nobody."""
        free = fetch.count_free_holders()
        if not free:
            return
        free -= sum(each.is_superseded for each in fetch.hosts.values())  # they will ask for one soon
        need: Need | None = None
        for each in fetch.sharing()[: max(free, 0)]:
            if need is None:
                need = describe_need(fetch, each, self._rates, now)
            else:
                need = replace(need, fetcher=each, failed=each.failed)
            feeder, found = fetch.hosts[each.feeders[0]], choose_whole(fetch, need, 1)
            is_as_near = bool(found) and (found[0].zone == each.zone or feeder.zone != each.zone)
            if is_as_near and not fetch.children.get(found[0].host):
                fetch.supersede(each)

    def _move(self, fetch: Fetch, hosts: Collection[str], now: float) -> None:
        """Let those of `hosts` ask again for which there is a better feeder."""
        for each in [fetch.hosts[host] for host in hosts if host in fetch.hosts]:
            need = describe_need(fetch, each, self._rates, now)
            better = None if each.is_superseded else choose_in_flight(fetch, need)
            if better is None or better.host in each.feeders or better.path_end in need.lagging:
                continue
            if fetch.is_live(better.path_end, now):
                fetch.supersede(each)


def _is_believed(fetch: Fetch, host: str, feeder: str) -> bool:
    """Return whether `host` is believed that wrong bytes went over its link from `feeder`."""
    accused = fetch.accused.setdefault(host, set())
    if len(accused) < _MAX_ACCUSED:
        accused.add(feeder)
    return feeder in accused
