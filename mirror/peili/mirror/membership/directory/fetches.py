"""One key that hosts are fetching: which hosts, how far each of them is, and who feeds whom. No decisions, no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from peili.mirror.membership.directory.fetcher import Fetcher, Place
from peili.mirror.support.newest import put_newest

STALLED_TIME = 15.0
"""Seconds without a byte after which a host that no other host feeds is no longer relied on."""

_COMPARED = 16
"""How many hosts are compared. The one of them that feeds the fewest for other keys comes first."""
_MOST_LEFT = 64
"""Of how many hosts that were forgotten it is remembered who has fed them. They may complain later."""


class Fetch:
    """A key that is being fetched.

    Args:
        key: The key as text.
        most: How many hosts one host feeds at most.
        loads: How many hosts each host feeds, of all keys together. Kept up to date.
        opened_by: The host that asked for the key first.

    Attributes:
        size: The size in bytes, if a host has said it.
        hosts: The hosts that fetch it or have it, by id.
        children: For each feeder, the hosts that were told to read from it.
        most: As above.
        recorded: The hosts that are here because of what they have reported about their stores.
        roots: The ids of the hosts that were sent upstream.
        begun_at: When the first of them was; None before that.
        queued_since: When a host first said that its runtime fetches other content before this; None if none did. It
            counts for ten minutes.
        opened_by: As above.
        accused: The feeders that each host has accused of wrong bytes, as far as it is believed.
        asked: When a host last asked for the key.
        reviewed_at: When the roots were last reviewed.
        refusals: How many hosts in a row were sent upstream and got nothing.
        promoted_at: When a further host was last chosen to go upstream.
        active: How many hosts do not have the whole content.
    """

    def __init__(self, key: str, most: int, loads: Counter[str], opened_by: str = "") -> None:
        self.key = key
        self.opened_by = opened_by
        self.size: int | None = None
        self.hosts: dict[str, Fetcher] = {}
        self.children: dict[str, dict[str, None]] = {}
        self.recorded: set[str] = set()
        self.roots: dict[str, None] = {}
        self.begun_at: float | None = None
        self.queued_since: float | None = None
        self.accused: dict[str, set[str]] = {}
        self.asked = self.reviewed_at = float("-inf")
        self.refusals = 0
        self.promoted_at = float("-inf")
        self.active = 0
        self.most = most
        self._loads = loads
        self._left: dict[str, tuple[str, ...]] = {}  # the `Fetcher.fed_by` of hosts that were forgotten
        self._places: dict[Place, dict[str, None]] = {}

    def add(self, fetcher: Fetcher) -> None:
        """Add a host."""
        self.hosts[fetcher.host] = fetcher
        fetcher.fed_by = self._left.pop(fetcher.host, ())
        self.active += not fetcher.is_whole
        self.settle_path(fetcher.host)  # it may have children already, and is their path now

    def remove(self, host: str) -> None:
        """Forget `host`. Its children keep it as their feeder, with an unknown path."""
        fetcher = self.hosts.pop(host)
        if fetcher.fed_by:
            put_newest(self._left, host, fetcher.fed_by, _MOST_LEFT)
        self.active -= not fetcher.is_whole
        self.roots.pop(host, None)
        self.recorded.discard(host)
        self._place(fetcher, None)
        self.feed(fetcher, (), fetcher.fed_since)
        for child in self.children.get(host, ()):
            self.settle_path(child)

    def feed(self, fetcher: Fetcher, feeders: tuple[str, ...], now: float) -> None:
        """Record that `fetcher` reads from `feeders` from now on, and from nobody else."""
        if feeders == fetcher.feeders:
            return
        for old in fetcher.feeders:
            children = self.children[old]
            del children[fetcher.host]
            self._loads[old] -= 1
            if not self._loads[old]:
                del self._loads[old]
            if not children:
                del self.children[old]
            self.arrange(old)
        fetcher.read_from(feeders, now)
        for new in feeders:
            for sibling in self.children.get(new, ()):
                if sibling in self.hosts:
                    self.hosts[sibling].measure_anew()  # it had more of the uplink until now
            self.children.setdefault(new, {})[fetcher.host] = None
            self._loads[new] += 1
            self.arrange(new)
        fetcher.measure_anew()
        if fetcher.host in self.hosts:
            self.settle_path(fetcher.host)

    def set_root(self, fetcher: Fetcher, is_root: bool, now: float) -> None:
        """Record that the runtime of `fetcher` was sent upstream and is waited for, or no longer is."""
        fetcher.is_root = is_root
        if is_root:
            for each in self.hosts.values():  # nobody else needs to go upstream any more
                each.is_promoted = False
            self.feed(fetcher, (), now)
            fetcher.measure_anew()
            fetcher.claimed = fetcher.fed_offset = fetcher.offset
            fetcher.grew = fetcher.fed_since = now
            fetcher.is_starving = fetcher.has_given_up = fetcher.is_doubted = fetcher.is_held_up = False
            self.roots[fetcher.host] = None
            self.begun_at = now if self.begun_at is None else self.begun_at
        else:
            self.roots.pop(fetcher.host, None)

    def set_whole(self, fetcher: Fetcher, now: float) -> None:
        """Record that `fetcher` has the whole content."""
        if not fetcher.is_whole:
            fetcher.is_whole, fetcher.whole_since = True, now
            fetcher.is_superseded = fetcher.is_promoted = False
            self.active -= 1
            self.set_root(fetcher, False, 0.0)
            self.feed(fetcher, (), fetcher.fed_since)
            self.settle_path(fetcher.host)

    def hear(self, fetcher: Fetcher, now: float) -> None:
        """Record that this home has just heard of `fetcher`, so that it is not silent."""
        fetcher.heard = now
        if fetcher.is_silent:
            fetcher.is_silent = False
            for each in (fetcher.host, *fetcher.feeders):
                self.arrange(each)

    def supersede(self, fetcher: Fetcher) -> None:
        """Record that `fetcher` should ask again. Its share of its feeder's uplink counts as free."""
        fetcher.is_superseded = True
        for each in fetcher.feeders:
            self.arrange(each)

    def supersede_children(self, host: str) -> None:
        """Record that all hosts that read from `host` should ask again."""
        for child in self.children.get(host, ()):
            if child in self.hosts:
                self.supersede(self.hosts[child])

    def settle_path(self, host: str) -> None:
        """Compute the depth and the path end of `host` anew, and of all hosts that get the content through it."""
        waiting = [host]
        while waiting:
            fetcher = self.hosts.get(waiting.pop())
            if fetcher is None:
                continue
            feeder = self.hosts.get(fetcher.feeders[0]) if fetcher.feeders else None
            if fetcher.is_whole:
                depth, end = 0, fetcher.host
            elif feeder is None:
                depth, end = 1, fetcher.feeders[0] if fetcher.feeders else fetcher.host
            else:
                depth, end = feeder.depth + 1, feeder.path_end
            if (depth, end) != (fetcher.depth, fetcher.path_end) or fetcher.host == host:
                fetcher.depth, fetcher.path_end = depth, end
                waiting += self.children.get(fetcher.host, ())
            self.arrange(fetcher.host)

    def load(self, host: str) -> int:
        """Return how many hosts `host` feeds that take a full share of its uplink, as far as this is known."""
        count = 0
        for child in self.children.get(host, ()):
            fetcher = self.hosts.get(child)
            if fetcher is not None and fetcher.feeders[0] == host:  # a host with several reads most from the first
                count += fetcher.takes_share
        return count

    def count_free_holders(self) -> int:
        """Return how many whole holders feed nobody, and can."""
        return len(self._places.get((None, 0, 0), ()))

    def sharing(self) -> list[Fetcher]:
        """Return hosts that share their feeder's uplink with one that has it longer, the nearest to a root first."""
        found: list[Fetcher] = []
        for feeder in self.children.keys() & self.hosts.keys():
            if self.load(feeder) > 1:
                children = (self.hosts[each] for each in self.children[feeder] if each in self.hosts)
                found += [each for each in children if each.feeders[0] == feeder and each.takes_share][1:]
        return sorted(found, key=lambda each: each.depth)

    def arrange(self, host: str) -> None:
        """Note whether `host` can feed a further host. Called after each change that this depends on."""
        fetcher = self.hosts.get(host)
        if fetcher is None:
            return
        is_open = fetcher.can_feed and len(self.children.get(host, ())) < self.most
        self._place(fetcher, (fetcher.zone, fetcher.depth, self.load(host)) if is_open else None)

    def open_feeders(self, zone: str | None, depths: range, loads: range) -> Iterator[Fetcher]:
        """Yield the hosts that can feed a further host: the nearest to their root first, then the least loaded.

        Args:
            zone: Only hosts of this zone; None for all.
            depths: Their depths.
            loads: How many hosts they feed.
        """
        for depth in depths:
            for load in loads:
                hosts = tuple(self._places.get((zone, depth, load), ()))
                for host in sorted(hosts[:_COMPARED], key=self._loads.__getitem__):
                    yield self.hosts[host]
                for host in hosts[_COMPARED:]:
                    yield self.hosts[host]

    def below(self, host: str) -> tuple[set[str], int]:
        """Return the hosts that get the content through `host`, and how many hops the farthest one is away."""
        found, height, level = set[str](), 0, list(self.children.get(host, ()))
        while level := [each for each in level if each not in found]:
            height += 1
            found.update(level)
            level = [child for each in level for child in self.children.get(each, ())]
        return found, height

    def supersede_all_without_bytes(self) -> None:
        """Record that all hosts should ask again that have nothing yet: they wait for hosts that get nothing."""
        for fetcher in self.hosts.values():
            if fetcher.feeders and not fetcher.offset:
                self.supersede(fetcher)

    def share(self, host: str) -> float:
        """Return the share of the hosts that `host` feeds, of all keys, that it feeds with this key."""
        return len(self.children.get(host, ())) / max(1, self._loads[host])

    def slow_hosts(self) -> list[Fetcher]:
        """Return the hosts that feed others only if nobody else can."""
        return [each for each in self.hosts.values() if each.is_slow]

    def is_live(self, path_end: str, now: float) -> bool:
        """Return whether bytes can be expected from a host at the end of a path."""
        fetcher = self.hosts.get(path_end)
        if fetcher is None or fetcher.is_silent or fetcher.is_starving:
            return False
        has_source = fetcher.is_root or fetcher.offset > 0
        return fetcher.is_whole or (has_source and fetcher.grew + STALLED_TIME > now)

    def live_roots(self, now: float) -> list[Fetcher]:
        """Return the hosts that were sent upstream and from which bytes can be expected."""
        return [self.hosts[each] for each in self.roots if self.is_live(each, now)]

    def _place(self, fetcher: Fetcher, place: Place | None) -> None:
        old = fetcher.place
        if old == place:
            return
        fetcher.place = place
        if old is not None:
            for each in (old, (None, *old[1:])):
                hosts = self._places[each]
                del hosts[fetcher.host]
                if not hosts:
                    del self._places[each]
        if place is not None:
            for each in (place, (None, *place[1:])):
                self._places.setdefault(each, {})[fetcher.host] = None
