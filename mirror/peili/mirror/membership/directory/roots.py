"""Which hosts are the roots of a key, which of them do too little, and who is to be the next one.

A root is a host that was sent upstream for others.
"""

from __future__ import annotations

from collections.abc import Callable

from peili.mirror.limits import MIB
from peili.mirror.membership.directory.fetcher import Fetcher
from peili.mirror.membership.directory.fetches import Fetch
from peili.mirror.membership.directory.link_rates import LinkRates

MAX_ROOTS = 3
"""How many roots a key has at most at the same time."""
MAX_REFUSALS = 3
"""After so many roots in a row that got nothing, nobody is waited for: upstream does not answer."""
_REPORT_TIME = 1.0
"""Seconds that the first bytes of a root may need to become known here."""
SLOW_FACTOR = 4
"""A root is slow if others get this many times as much from upstream. Three layers at once share one link."""
_MEASURED_TIME = 2.0
"""Seconds for which a root is measured before it is called slow."""
_REPEATED_TIME = 5.0
"""Seconds for which hosts repeat a rate. What is heard in this time may be about content from before."""
_WORTH_TIME = 5.0
"""A further root is worth the effort if the slow one needs at least this many seconds for the rest."""
_PROMOTION_TIME = 5.0
"""Seconds from one promotion to the next, so that the effect of the first can be seen."""
_AHEAD = 4 * MIB
"""By how many bytes a root must be ahead of another one, so that hosts move to it."""
_HELD_UP = 16 * MIB
"""By how many bytes all its children must be behind a root that holds them up. Layers that share an uplink may get
unequal parts of it for some seconds, so less would show nothing."""
_FASTER = 1.5
"""How many times as fast it must be."""
_KNOWN_TIME = 10.0
"""Seconds that the first bytes may need if the host has got something else from upstream lately."""
_SLOW_STEPS = 2
"""They may also need this many times as long as another root needs from one step of its file to the next."""
_QUEUED_TIME, _QUEUED_INTERVAL = 130.0, 600.0
"""Seconds after which nobody is believed any more that its runtime fetches other content before a key, and after which
that is believed again. Others wait for this host, which may be wrong or lie. Hosts stop saying so after 120 s."""


def make_root(fetch: Fetch, fetcher: Fetcher, now: float) -> None:
    """Make a host a root. Roots from which nothing can be expected are none any more."""
    for host in fetch.roots.keys() - {each.host for each in fetch.live_roots(now)}:
        fetch.set_root(fetch.hosts[host], False, now)  # it may come back, but not as one too many
    fetch.set_root(fetcher, True, now)


def adopt_root(fetch: Fetch, fetcher: Fetcher, rates: LinkRates, now: float) -> None:
    """Make a host a root that went upstream without a grant of this home, unless there are enough roots."""
    if fetcher.is_root or not fetcher.can_share or rates.is_unserved(fetcher.host, now):
        return
    if len(fetch.live_roots(now)) < MAX_ROOTS:
        make_root(fetch, fetcher, now)


def keep_queued(fetch: Fetch, fetcher: Fetcher, rates: LinkRates, now: float) -> None:
    """Do not give up a host yet that was sent upstream and fetches other content first.

    If this home was restarted and knows of no root, it makes the host one again, so that it sends nobody else.
    """
    if fetch.queued_since is None or fetch.queued_since + _QUEUED_INTERVAL <= now:
        fetch.queued_since = now
    if fetch.queued_since + _QUEUED_TIME <= now:
        return
    if not fetch.live_roots(now):
        adopt_root(fetch, fetcher, rates, now)
    fetcher.postpone(now)


def unproven_roots(fetch: Fetch, rates: LinkRates, timeout: float, now: float) -> list[Fetcher]:
    """Return the roots that have got no byte in time, or whose runtime has given up without one.

    Args:
        fetch: The key.
        rates: Knows which hosts have got something from upstream.
        timeout: ``limits.claim_timeout``.
        now: The time.
    """
    roots = [fetch.hosts[each] for each in fetch.roots]
    slowest = max((each.step_time for each in roots), default=0.0)

    def is_late(root: Fetcher) -> bool:
        time = _KNOWN_TIME if rates.has_upstream(root.host, now) else timeout + _REPORT_TIME
        return root.offset <= root.claimed and root.fed_since + max(time, _SLOW_STEPS * slowest) <= now

    return [each for each in roots if each.has_given_up or is_late(each)]


def lagging_roots(fetch: Fetch, now: float) -> set[str]:
    """Return the roots that another root has overtaken, and that are slower. Only a root that can send counts."""
    if len(fetch.roots) < 2:
        return set()
    live = fetch.live_roots(now)
    lead = max((each for each in live if not each.is_held_up), key=lambda each: each.offset, default=None)
    if lead is None:
        return set()
    return {each.host for each in live if _is_overtaken(each, lead, now)}


def _is_overtaken(root: Fetcher, lead: Fetcher, now: float) -> bool:
    slow, fast = root.rate_at(now) or 0.0, lead.rate_at(now) or 0.0
    return lead.offset - root.offset > max(_AHEAD, slow) and fast > _FASTER * slow


def dead_ends(fetch: Fetch, now: float) -> list[str]:
    """Return the hosts at the end of a path from which nothing more can be expected, if a root lives."""
    if not fetch.live_roots(now):
        return []
    known = [fetch.hosts[each] for each in fetch.children if each in fetch.hosts]
    return [each.host for each in known if each.path_end == each.host and not fetch.is_live(each.host, now)]


def needs_root(fetch: Fetch, rates: LinkRates, now: float) -> bool:
    """Return whether a further host should go upstream, because the roots do too little."""
    live = fetch.live_roots(now)
    if not fetch.roots or len(live) >= MAX_ROOTS or fetch.active <= len(fetch.roots):
        return False
    if fetch.promoted_at + _PROMOTION_TIME > now:
        return False
    if not live or _is_slow(fetch, max(live, key=lambda each: each.rate_at(now) or 0.0), rates, now):
        return True
    return bool(held_up_roots(fetch, now))


def _is_slow(fetch: Fetch, root: Fetcher, rates: LinkRates, now: float) -> bool:
    """Return whether others are likely to get much more from upstream than `root`, so that help is worth the effort."""
    rate = root.rate_at(now)
    is_measured = root.offset > root.claimed and root.fed_since + _MEASURED_TIME <= now
    # A root that gets nothing is not slow: maybe nobody gets anything. See `STALLED_TIME`.
    if rate is None or fetch.size is None or not is_measured or root.has_paused(now):
        return False
    rest = (fetch.size - root.offset) / max(rate, 1.0)
    rate = max(rate, rates.upstream_of(root.host, now))  # it may receive other keys on the same path
    others = rates.upstream_of_others(root.host, root.fed_since + _REPEATED_TIME, now)
    if others is not None and others >= SLOW_FACTOR * rate:
        return rest >= _WORTH_TIME
    is_upstream_slow = others is not None and others * SLOW_FACTOR >= rate  # the others get no more
    if is_upstream_slow or len(fetch.roots) > 1:
        return False
    # Without evidence, the root itself says for which of its keys a trial costs least. What it shows counts for all.
    return root.is_doubted and rates.possible_uplink(now) >= SLOW_FACTOR * rate


def held_up_roots(fetch: Fetch, now: float) -> list[Fetcher]:
    """Return the roots, if the uplinks of all of them hold up the others. A further root is not behind them then."""
    live = fetch.live_roots(now)
    is_in_flight = not any(each.is_whole for each in fetch.hosts.values())
    return live if is_in_flight and all(_holds_up(fetch, each, now) for each in live) else []


def _holds_up(fetch: Fetch, root: Fetcher, now: float) -> bool:
    """Return whether those that read from `root` get much less than it receives, and need long for the rest.

    Its uplink is probably slow. No other uplink can show that: all hosts behind it get no more.
    """
    rate = root.rate_at(now)
    children = [fetch.hosts[each] for each in fetch.children.get(root.host, ()) if each in fetch.hosts]
    if rate is None or fetch.size is None or not children:
        return False
    if any(each.rate is None or each.fed_since + _MEASURED_TIME > now for each in children):
        return False
    sent, offset = sum(each.rate_at(now) or 0.0 for each in children), max(each.offset for each in children)
    is_slower = SLOW_FACTOR * sent <= rate and root.offset - offset > _HELD_UP
    return is_slower and fetch.size - offset >= _WORTH_TIME * sent


def choose_root(fetch: Fetch, rates: LinkRates, count_roots: Callable[[str], int], now: float) -> Fetcher | None:
    """Return the host that should go upstream: the one with the most bytes; None if there is none.

    Of several, it is the nearest to its root, so that the others follow it.

    Args:
        fetch: The key.
        rates: Knows which hosts got nothing from upstream lately.
        count_roots: Returns for how many keys a host is a root. Of hosts as near as each other, the lowest is taken.
        now: The time.
    """
    able = [each for each in fetch.hosts.values() if each.can_feed and not each.is_whole and not each.is_root]
    able = [each for each in able if not rates.is_unserved(each.host, now)]
    most = max((each.offset for each in able), default=0)
    best = (each for each in able if each.offset == most)
    return min(best, key=lambda each: (each.depth, count_roots(each.host)), default=None)
