"""Finds out from what hosts report how fast links are, and which end of a slow link is to be avoided."""

from __future__ import annotations

from peili.mirror.limits import KIB, MIB
from peili.mirror.membership.directory.fetcher import Fetcher
from peili.mirror.membership.directory.fetches import Fetch
from peili.mirror.membership.directory.link_rates import LinkRates

_LAG = 4 * MIB
"""By how many bytes a host must be behind its feeder, so that their link counts as the limit."""
_LAG_TIME = 1.0
"""By how many seconds at its rate it must also be behind."""
_FED_TIME = 0.8
"""Seconds for which a host must have been fed before its rate counts."""
_SLOWER = 2
"""A feeder is slow if it sends this many times less than it receives, and than others send."""
_STUCK_TIME, _STUCK_RESUME_TIME = 5.0, 20.0
"""Seconds after which a host that got nothing at all from its feeder, although that has more, is stuck: if it has begun
with the first byte, and if not. It may then read back what it has first, for up to half of ``limits.wait_timeout``."""
_BAD_REPORTS = 2
"""After so many reports in a row that show a slow link, something is done."""
_SIBLING_FACTOR = 3
"""A child is slow if another child of its feeder gets this many times as much."""
_MEASURED_SIZE = 512 * KIB
"""The smallest content from whose whole transfer a rate is learnt."""
_SHORTEST_TIME = 0.001
"""Seconds. A whole transfer counts as at least as long."""
_LIMITED_HOPS = 5
"""If a whole holder needs longer than this many hops for small content, its uplink was the limit."""


def measure_whole(fetch: Fetch, child: Fetcher, offset: int, rates: LinkRates, now: float) -> None:
    """Measure the link over which a host has received everything. Small content is too short for any other report.

    Args:
        fetch: The key.
        child: The host.
        offset: How many bytes it has now.
        rates: Takes the measurement.
        now: The time.
    """
    received = offset - child.fed_offset
    if not child.feeders or received < _MEASURED_SIZE:
        return
    feeder = fetch.hosts.get(child.feeders[0])  # a host with several reads most from the first
    seconds = max(now - child.fed_since, _SHORTEST_TIME)
    was_whole = feeder is not None and feeder.is_whole and feeder.whole_since <= child.fed_since
    is_limited = was_whole and seconds > _LIMITED_HOPS * rates.links(None, now).hop
    rate = received / seconds * (len(fetch.children[child.feeders[0]]) if is_limited else 1)
    rates.learn_uplink(child.feeders[0], rate, is_limited, now)


def judge_link(fetch: Fetch, child: Fetcher, available: int, rates: LinkRates, now: float) -> Fetcher | None:
    """Measure the link from the feeder of `child`.

    Args:
        fetch: The key.
        child: A host that has just reported.
        available: How many bytes its feeder had when it last said so.
        rates: Takes the measurements.
        now: The time.

    Returns:
        The slow end of the link, if this is found out: the child, or the feeder, which may have to be passed to
        `blame_feeder`.
    """
    feeder = fetch.hosts.get(child.feeders[0]) if len(child.feeders) == 1 else None
    if feeder is None or child.fed_since + _FED_TIME > now:
        return None
    if child.rate is None:
        return feeder if is_stuck(child, feeder, now) else None
    has = float(fetch.size or available) if feeder.is_whole else max(feeder.offset_at(now), available)
    lag, before = has - child.offset, child.lag
    child.lag = lag
    is_limited = lag > max(_LAG, _LAG_TIME * child.rate)
    siblings = [fetch.hosts[each] for each in fetch.children[feeder.host] if each in fetch.hosts]
    rates_of_all = [each.rate for each in siblings if each.rate is not None and each.fed_since + _FED_TIME <= now]
    if len(rates_of_all) < len(siblings):
        return None  # the uplink is shared with a host that was not measured yet
    sent = sum(rates_of_all) / fetch.share(feeder.host)
    # Reports that come late make a rate look higher than it is, so the uplink has at least what was sent on average.
    average = sum(each.average_rate(now) for each in siblings)
    rates.learn_uplink(feeder.host, sent if is_limited else min(sent, average), is_limited, now)
    if not is_limited:
        child.bad_reports = 0
        if not feeder.is_whole and feeder.rate is not None and child.rate > 0:
            rates.learn_hop(lag / child.rate)
        return None
    if lag < before or child.is_slow or feeder.is_slow:
        return None
    is_child_slow = max(rates_of_all) > _SIBLING_FACTOR * child.rate
    others = [rate for rate in (rates.usual_uplink(now, without=feeder.host), feeder.rate) if rate is not None]
    is_feeder_slow = bool(others) and sent * _SLOWER < min(others)
    child.bad_reports = child.bad_reports + 1 if is_child_slow or is_feeder_slow else 0
    slow = child if is_child_slow else feeder
    return slow if child.bad_reports >= _BAD_REPORTS else None


def is_stuck(child: Fetcher, feeder: Fetcher, now: float) -> bool:
    """Return whether `child` gets nothing at all, although its feeder says that it has more.

    A feeder that only says so may tell its child that it waits itself. The child would wait, and all hosts behind it.
    """
    time = _STUCK_RESUME_TIME if child.fed_offset else _STUCK_TIME
    gets_nothing = child.offset <= child.fed_offset and child.fed_since + time <= now
    return gets_nothing and not feeder.is_whole and feeder.offset - child.offset > _LAG


def blame_feeder(fetch: Fetch, feeder: Fetcher, child: Fetcher, rates: LinkRates) -> Fetcher:
    """Return which end of a link is slow, if `child` gets much less from `feeder` than the feeder has.

    At first it is the feeder. If the same happens to the child with another feeder, it was the child.
    """
    if child.blames - {feeder.host}:
        for host in child.blames:
            rates.clear_slow(host)
            if host in fetch.hosts:
                fetch.hosts[host].is_slow = False
                for each in (host, *fetch.hosts[host].feeders):  # it takes a full share of their uplinks again
                    fetch.arrange(each)
        return child
    child.blames.add(feeder.host)
    return feeder
