"""What this host's runtime fetches from upstream, as far as this host knows, and how fast."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peili.mirror.limits import MIB
from peili.mirror.membership.directory.fetches import STALLED_TIME

_MAX_FETCHES = 1024
_IDLE_TIME = 120.0
"""Seconds after which a fetch that does not grow is forgotten."""
_BUSY_TIME = 5.0
"""Seconds for which the runtime counts as busy after it has received something."""
_WINDOW = 1.0
"""Seconds over which a rate is measured."""
_RECENT = 5.0
"""Seconds for which a rate counts."""
_MEASURED_SIZE = MIB
"""The smallest content whose transfer shows a rate as a whole. What is smaller shows how fast upstream answers."""
_CHEAP_SHARE = 3
"""A trial is cheap if the rest of its key is at most one part of so many of all that is fetched now."""
_CHEAP_AGE, _CHEAP_TIME = 8.0, 20.0
"""A cheap trial is made after the first time, if the rest needs the second one."""
_TRIAL_INTERVAL = 300.0
"""Seconds from one trial to the next."""
_COSTLY_TIME = 60.0
"""One that is not cheap is made only after this time, and if the rest needs as long again."""


@dataclass(slots=True)
class UpstreamFetch:
    """A fetch.

    Attributes:
        key: The key.
        home: The id of the home that knows of it; None if no home does.
        size: The size of the whole content in bytes, if it is known.
        can_share: Whether other hosts can read it here while it arrives.
        allowed: When it was allowed.
        started: When its first bytes were seen; until then, when it was allowed. The runtime may fetch other content
            before it.
        grew: When it last grew.
        first: How many bytes there were at first; None while that is not known.
        latest: How many there are now.
    """

    key: str
    home: str | None
    size: int | None
    can_share: bool
    allowed: float
    started: float
    grew: float
    first: int | None = None
    latest: int = 0

    @property
    def rest(self) -> int:
        """The bytes that are missing; 0 if the size is not known."""
        return max(0, (self.size or 0) - self.latest)

    @property
    def rest_time(self) -> float:
        """The seconds that they need at the rate so far; 0 while that was not measured."""
        received = self.latest - (self.first or 0)
        return self.rest * (self.grew - self.started) / received if received > 0 else 0.0


class UpstreamFetches:
    """The keys for which this host was sent upstream. Used on one event loop.

    Args:
        clock: Returns a time in seconds that never goes back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._fetches: OrderedDict[str, UpstreamFetch] = OrderedDict()
        self._doubted: str | None = None
        self._doubted_at = float("-inf")
        self._rates: deque[tuple[float, float]] = deque(maxlen=64)  # when they were measured, and the rates
        self._window: float | None = None  # when the measured window began; None while nothing is fetched
        self._received = 0  # the bytes of all fetches since then
        self._busy_at = float("-inf")  # when the runtime last received something

    def __contains__(self, key: str) -> bool:
        return key in self._fetches

    def begin(self, key: str, *, home: str | None = None, size: int | None = None, can_share: bool = False) -> None:
        """Record that the runtime was sent upstream for `key`. What an earlier fetch got that has stopped says nothing.

        Args:
            key: The key.
            home: The id of the home that said so; None if there was none.
            size: The size of the whole content in bytes, if it is known.
            can_share: Whether other hosts can read it here while it arrives.
        """
        now, fetch = self._clock(), self._fetches.get(key)
        if fetch is None or fetch.grew + STALLED_TIME <= now:
            size = size if fetch is None else size or fetch.size
            self._fetches.pop(key, None)
            fetch = self._fetches[key] = UpstreamFetch(key, home, size, can_share, now, now, now)
        fetch.home, fetch.can_share = home or fetch.home, can_share or fetch.can_share
        if len(self._fetches) > _MAX_FETCHES:
            self._fetches.popitem(last=False)

    def find(self, key: str) -> UpstreamFetch | None:
        """Return the fetch of `key`, if there is one."""
        return self._fetches.get(key)

    def shared(self) -> Sequence[UpstreamFetch]:
        """Return the fetches that other hosts can read while they arrive."""
        return [fetch for fetch in self._fetches.values() if fetch.can_share]

    def arriving(self) -> Sequence[UpstreamFetch]:
        """Return those of `shared` from which more bytes can be expected, as homes see it."""
        stalled = self._clock() - STALLED_TIME
        return [fetch for fetch in self.shared() if fetch.grew > stalled]

    def unstarted(self, home: str) -> Sequence[UpstreamFetch]:
        """Return those of `shared` that a home knows of, and that have got no byte yet."""
        return [fetch for fetch in self.shared() if fetch.home == home and fetch.first is None]

    @property
    def is_busy(self) -> bool:
        """Whether the runtime receives something, so that it may fetch later what it has not begun.

        containerd 2.1 and later ask for all layers of an image at once, and fetch three at a time.
        """
        return self._busy_at + _BUSY_TIME > self._clock()

    def note_bytes(self) -> None:
        """Record that the runtime has received something, from upstream or from another host."""
        self._busy_at = self._clock()

    def complete(self, key: str, size: int | None) -> None:
        """Record that the runtime has `key` whole. Its rate counts, too, although it may not have begun at once.

        The first bytes may be seen here some time after they have arrived. So what has come since then counts as if it
        had taken at least a second, unless the fetch was allowed later than that.
        """
        fetch, now = self._fetches.get(key), self._clock()
        if fetch is not None and size is not None and now > fetch.allowed:
            received = max(0, size - (fetch.first or 0))
            seconds = max(now - fetch.started, min(_WINDOW, now - fetch.allowed))
            self._rates.append((now, received / seconds if size >= _MEASURED_SIZE else 0.0))
            self._receive(fetch, size, now)
        self.end(key)

    def end(self, key: str) -> None:
        """Record that the runtime does not fetch `key` from upstream any more."""
        self._fetches.pop(key, None)
        if not self._fetches:
            self._window = None

    def grow(self, key: str, available: int, size: int | None = None) -> None:
        """Record that `available` bytes of `key` have arrived. Keys that are not fetched from upstream are ignored.

        Args:
            key: The key.
            available: How many bytes from the start have arrived.
            size: The size of the whole content in bytes, if it is known.
        """
        fetch, now = self._fetches.get(key), self._clock()
        if fetch is None:
            return
        fetch.grew, fetch.size = now, size or fetch.size
        self._receive(fetch, available, now)

    def _receive(self, fetch: UpstreamFetch, available: int, now: float) -> None:
        """Measure the rate of all fetches together: they share the path to upstream.

        What was there at first does not count, because it may have arrived earlier.
        """
        self._busy_at = now
        if self._window is None:
            self._window, self._received = now, 0
        if fetch.first is None or available < fetch.first:
            fetch.first, fetch.started = available, now
        else:
            self._received += max(0, available - fetch.latest)
        fetch.latest = available
        if now - self._window >= _WINDOW:
            self._rates.append((now, self._received / (now - self._window)))
            self._window, self._received = now, 0

    def __len__(self) -> int:
        return len(self._fetches)

    def best_rate(self) -> float | None:
        """Return the best rate of all fetches together that was measured in the last seconds, in bytes per second.

        Returns:
            The rate. 0 if upstream has sent only small content, which shows no rate; None if it has sent nothing.
        """
        since = self._clock() - _RECENT
        return max((rate for measured, rate in self._rates if measured >= since), default=None)

    def doubted(self) -> str | None:
        """Return the key for which another host should try whether upstream is faster for it; None if none is worth it.

        Nobody can tell from one host's rate whether upstream is slow, or only this host's way to it. A trial costs the
        rest of one key, so it is the one with the smallest rest. There is no other one before that key has ended, and
        for some minutes.
        """
        if self._doubted not in self._fetches:
            self._doubted = None
            now = self._clock()
            if self._doubted_at + _TRIAL_INTERVAL <= now and (worth := self._worth_a_trial(now)):
                self._doubted, self._doubted_at = min(worth, key=lambda fetch: fetch.rest).key, now
        return self._doubted

    def _worth_a_trial(self, now: float) -> list[UpstreamFetch]:
        everything = sum(each.size or 0 for each in self._fetches.values())

        def is_worth(fetch: UpstreamFetch) -> bool:
            age = now - fetch.started
            if fetch.rest * _CHEAP_SHARE <= everything:
                return age >= _CHEAP_AGE and fetch.rest_time >= _CHEAP_TIME
            return min(age, fetch.rest_time) >= _COSTLY_TIME

        return [fetch for fetch in self.shared() if is_worth(fetch)]

    def expire(self) -> None:
        """Forget fetches that do not grow. Call it about every second."""
        idle = self._clock() - _IDLE_TIME
        for key in [key for key, fetch in self._fetches.items() if fetch.grew <= idle]:
            self.end(key)
