"""Which host feeds another one: the best of those that can, without a cycle and within the bound on children."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from peili.mirror.membership.directory.fan_out import MAX_DEPTH, Shape, choose_shape
from peili.mirror.membership.directory.fetcher import Fetcher
from peili.mirror.membership.directory.fetches import Fetch
from peili.mirror.membership.directory.link_rates import LinkRates
from peili.mirror.membership.directory.roots import lagging_roots

_LOOKED_AT = 256
"""How many hosts are looked at for one decision. The first is nearly always the right one."""
_BEHIND_TIME = 2.0
"""Seconds for which a host may have to wait until its new feeder has caught up with it."""

_Rank = tuple[bool, bool, bool, int]


@dataclass(frozen=True, slots=True)
class Need:
    """A host that needs a feeder.

    Attributes:
        fetcher: The host.
        failed: Hosts that it can't use.
        shape: How hosts are to feed each other.
        lagging: Roots that another one has overtaken.
        now: The time.
    """

    fetcher: Fetcher
    failed: Collection[str]
    shape: Shape
    lagging: Collection[str]
    now: float


def describe_need(fetch: Fetch, fetcher: Fetcher, rates: LinkRates, now: float, failed: Collection[str] = ()) -> Need:
    """Return what a host needs.

    Args:
        fetch: The key.
        fetcher: The host.
        rates: How fast hosts and upstream are.
        now: The time.
        failed: Hosts that it can't use; empty for those that it has last complained about.
    """
    return Need(fetcher, failed or fetcher.failed, _shape(fetch, rates, now), lagging_roots(fetch, now), now)


def _shape(fetch: Fetch, rates: LinkRates, now: float) -> Shape:
    """Return how hosts are to feed each other.

    A root may get this key slowly for now, because it shares the path with other keys, or has just begun. Others
    would share uplinks for that as long as the key takes. So what the root gets in all counts.
    """
    live = fetch.live_roots(now)
    known = [max(each.rate_at(now) or 0.0, rates.upstream_of(each.host, now)) for each in live]
    upstream = max((rate for rate in known if rate), default=None)
    sources = len(live) + len(fetch.hosts) - fetch.active
    return choose_shape(fetch.size, fetch.active, sources, rates.links(upstream, now), fetch.most)


def choose_whole(fetch: Fetch, need: Need, most: int) -> tuple[Fetcher, ...]:
    """Return whole holders to read from: those of the same zone first, then the least loaded ones.

    Args:
        fetch: The key.
        need: The host that needs it.
        most: How many are returned at most. Only holders that feed nobody come after the first.
    """
    found: list[Fetcher] = []
    for zone, depths, loads in _orders(need, range(1)):
        for each in islice(fetch.open_feeders(zone, depths, loads), _LOOKED_AT):
            if each in found or each is need.fetcher or each.host in need.failed:
                continue
            if not found or not fetch.children.get(each.host):
                found.append(each)
            if len(found) >= most:
                return tuple(found)
    return tuple(found) or tuple(each for each in _current(fetch, need) if each.is_whole)


def choose_in_flight(fetch: Fetch, need: Need) -> Fetcher | None:
    """Return the host from which the needy one gets its further bytes; None if there is none.

    That host has bytes that the other one lacks, or a live root. It does not get its own bytes through the other one.
    Only if no host feeds fewer than its share of hosts, one that feeds more is returned. It may be a whole holder.
    """
    fetcher = need.fetcher
    below, height = fetch.below(fetcher.host)
    best: tuple[_Rank, Fetcher] | None = None
    looked_at = 0
    for each in _candidates(fetch, need, height):
        looked_at += 1
        if each is fetcher or each.host in below or each.host in need.failed or each.depth + 1 + height > MAX_DEPTH + 1:
            continue
        rank = _rank(fetch, need, each)
        if rank is not None and (best is None or rank < best[0]):
            best = rank, each
        if looked_at >= _LOOKED_AT or (best is not None and best[0] == (False, False, False, 0)):
            break
    return best[1] if best is not None else None


def _candidates(fetch: Fetch, need: Need, height: int) -> Iterator[Fetcher]:
    """Yield the hosts that may feed the needy one, the best ones first as a rule."""
    depths = range(MAX_DEPTH + 1 - height)
    orders = (fetch.open_feeders(*order) for order in _orders(need, depths))
    # If all hosts have their share of children, one far from its root gets another one: that costs the fewest hosts.
    full = fetch.open_feeders(None, depths[::-1], range(need.shape.children, fetch.most))
    slow = (each for each in fetch.hosts.values() if each.is_slow and _could_feed(fetch, each))
    return chain(*orders, full, _current(fetch, need), slow)


def _current(fetch: Fetch, need: Need) -> list[Fetcher]:
    """Return the hosts that the needy one was told to read from, if it can go on with them."""
    known = [fetch.hosts[each] for each in need.fetcher.feeders if each in fetch.hosts and each not in need.failed]
    return [each for each in known if each.has_content and not each.is_silent]


def _orders(need: Need, depths: range) -> list[tuple[str | None, range, range]]:
    """Return in which order hosts are looked at: those of the same zone first, then those nearest to a root.

    If there are too many hosts for a chain, those far from a root come first, and of them those that feed nobody.
    """
    zones = (need.fetcher.zone, None) if need.fetcher.zone else (None,)
    loads = range(need.shape.children)
    if need.shape.branches_late:
        return [(zone, depths[::-1], range(load, load + 1)) for zone in zones for load in loads]
    return [(zone, depths, loads) for zone in zones]


def _could_feed(fetch: Fetch, fetcher: Fetcher) -> bool:
    """Return whether a slow host can feed a further one if it must."""
    return fetcher.has_content and not fetcher.is_silent and len(fetch.children.get(fetcher.host, ())) < fetch.most


def _rank(fetch: Fetch, need: Need, feeder: Fetcher) -> _Rank | None:
    """Return how good `feeder` is, the lowest is the best; None if it has nothing for the needy host."""
    fetcher = need.fetcher
    is_live = not feeder.is_starving and fetch.is_live(feeder.path_end, need.now)
    is_ahead = feeder.is_whole or feeder.offset > fetcher.offset
    if not is_live and not is_ahead:
        return None
    missing = 0 if feeder.is_whole else fetcher.offset - feeder.offset
    # A slow host rather waits than takes a share of an uplink that others need.
    is_soon = missing <= 0 or fetcher.is_slow or missing <= _BEHIND_TIME * (feeder.rate or 0.0)
    is_free = fetch.load(feeder.host) < need.shape.children
    kind = {(True, True): 0, (False, True): 1, (True, False): 2, (False, False): 3}[is_free, is_soon]
    return feeder.is_slow, not is_live, feeder.path_end in need.lagging, kind
