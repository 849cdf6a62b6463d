"""What a host is told that asks a home for a key: to read from others, to go upstream, or to ask again in a moment."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from peili.mirror.membership.directory.feeders import Need, choose_in_flight, choose_whole, describe_need
from peili.mirror.membership.directory.fetcher import Fetcher
from peili.mirror.membership.directory.fetches import Fetch
from peili.mirror.membership.directory.forming import FORMING_WAIT, is_forming, take_waiting
from peili.mirror.membership.directory.link_rates import LinkRates
from peili.mirror.membership.directory.reporters import Reporters
from peili.mirror.membership.directory.roots import MAX_REFUSALS, MAX_ROOTS, SLOW_FACTOR, make_root
from peili.mirror.peer_api.directory import KnownHolder
from peili.mirror.peer_api.leases import FeedFrom, GoUpstream, Grant, WaitFor

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
"""Seconds until a host that waits asks again."""
SEVERAL = 4
"""How many whole holders a host gets at most."""


class Decisions:
    """Decides what hosts are told. A grant is recorded in the fetch, so that the next decision counts with it.

    Args:
        rates: How fast hosts and upstream are.
        reporters: The hosts that report.
    """

    def __init__(self, rates: LinkRates, reporters: Reporters) -> None:
        self._rates = rates
        self._reporters = reporters
        self._settled = float("-inf")  # until when nobody is sent upstream
        self._led = float("-inf")  # when a host that follows nobody was last sent upstream

    def settle(self, now: float) -> None:
        """Send nobody upstream for a moment."""
        self._settled = now + _SETTLE_TIME

    def decide(self, fetch: Fetch, fetcher: Fetcher, failed: Collection[str], now: float) -> Grant:
        """Decide where a host gets a key.

        Args:
            fetch: The key.
            fetcher: The host.
            failed: Hosts that it can't use.
            now: The time.
        """
        need = describe_need(fetch, fetcher, self._rates, now, failed)
        return self._kept(fetch, need) or self._choose(fetch, need)

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
            return _feed(fetch, need, feeders)
        [feeder] = feeders
        can_wait = not feeder.is_starving and fetch.is_live(feeder.path_end, need.now)
        if not (can_wait or feeder.offset > fetcher.offset) or choose_whole(fetch, need, 1):
            return None
        return _feed(fetch, need, feeders)

    def _choose(self, fetch: Fetch, need: Need) -> Grant:
        fetcher, now = need.fetcher, need.now
        fetch.supersede(fetcher)  # its share of the old feeder's uplink is free from now on
        if fetcher.is_promoted and len(fetch.live_roots(now)) < MAX_ROOTS:
            return self._send_upstream(fetch, need)
        free = choose_whole(fetch, need, max(1, SEVERAL // fetch.active))
        if free:
            return _feed(fetch, need, free)
        if is_forming(fetch, need):
            fetcher.is_forming = True
            return WaitFor(FORMING_WAIT)
        self._form_chain(fetch, now)
        formed = self._kept(fetch, need)  # it has a feeder if it was among those that have waited
        if formed is not None:
            return formed
        feeder = choose_in_flight(fetch, need)
        return self._send_upstream(fetch, need) if feeder is None else _feed(fetch, need, (feeder,))

    def _form_chain(self, fetch: Fetch, now: float) -> None:
        """Choose the feeders of all hosts that wait until a chain has formed. They learn it when they ask again."""
        for fetcher in take_waiting(fetch):
            need = describe_need(fetch, fetcher, self._rates, now)
            feeder = None if fetcher.feeders or fetcher.is_root or fetcher.is_whole else choose_in_flight(fetch, need)
            if feeder is not None:
                _feed(fetch, need, (feeder,))

    def _send_upstream(self, fetch: Fetch, need: Need) -> Grant:
        fetcher, now = need.fetcher, need.now
        wait = min(self._settled, fetcher.since + _MAX_SETTLE_TIME) - now
        if wait > 0:
            return WaitFor(wait)
        if self._should_yield(fetch, fetcher, now):
            return WaitFor(_WAIT)
        live = fetch.live_roots(now)
        is_able = fetcher.can_share and not self._rates.is_unserved(fetcher.host, now)
        is_waited_for = is_able and len(live) < MAX_ROOTS and fetch.refusals < MAX_REFUSALS
        if not is_waited_for and any(each.host not in need.failed for each in live):
            fetcher.waits_since = now if fetcher.waits_since is None else fetcher.waits_since
            if fetcher.waits_since + _FULL_TIME > now:
                return WaitFor(_WAIT)
        fetcher.is_superseded = fetcher.is_promoted = False
        if is_waited_for:
            make_root(fetch, fetcher, now)
        else:
            fetch.feed(fetcher, (), now)
        if not fetcher.follows:
            self._led = now
        return GoUpstream()

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
        if fetcher.follows and fetch.begun_at is None:
            fetcher.waits_since = now if fetcher.waits_since is None else fetcher.waits_since
            is_led = self._led + _LEAD_TIME > now
            return fetcher.waits_since + (_MAX_FOLLOW_TIME if is_led else _FOLLOW_TIME) > now
        rate = self._rates.upstream_of(fetcher.host, now)
        if not rate or self._rates.possible_uplink(now) < SLOW_FACTOR * rate:
            return False
        others = self._rates.upstream_of_others(fetcher.host, 0.0, now)
        if others is not None and others < SLOW_FACTOR * rate:
            return False
        fetcher.waits_since = now if fetcher.waits_since is None else fetcher.waits_since
        return self._reporters.are_others_active(fetcher.host, now) and fetcher.waits_since + _WAIT > now


def _feed(fetch: Fetch, need: Need, feeders: Sequence[Fetcher]) -> Grant:
    fetcher, now = need.fetcher, need.now
    fetcher.is_superseded = fetcher.is_starving = False
    fetcher.waits_since = None
    if fetcher.is_root:
        fetch.set_root(fetcher, False, now)
    fetch.feed(fetcher, tuple(each.host for each in feeders), now)
    for each in feeders:
        fetch.arrange(each.host)
    return FeedFrom(
        tuple(KnownHolder(each.host, fetch.size, None if each.is_whole else each.offset) for each in feeders)
    )
