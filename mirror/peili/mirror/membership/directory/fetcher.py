"""One host that fetches a key: what it was told, how far it is, and how fast. No decisions, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

_WINDOW = 0.4
"""The shortest time in seconds over which a rate is measured."""
_EXTRAPOLATED = 1.0
"""Seconds for which a host is assumed to go on at its rate."""
_PAUSE = 2.0
"""A host without a byte for this many seconds may have stopped. Before that, it is only slow."""
_PAUSED_STEPS = 2
"""It counts as stopped once it has also missed this many steps as long as its last one."""
_REMEMBERED_FEEDERS = 32
"""How many of the hosts that it was told to read from are remembered."""

Place: TypeAlias = tuple[str | None, int, int]
"""Where `Fetch` looks for hosts that can feed another one: the zone, the depth, and how many hosts they feed."""


@dataclass(eq=False, slots=True)
class Fetcher:
    """A host that fetches the key, or has it whole.

    Attributes:
        host: The id of the host.
        zone: Its zone; empty if it is not known.
        since: When this home first heard of it for this key.
        heard: When this home last heard of it for this key.
        offset: How many bytes from the start it has.
        grew: When these became more; at first, when it was told where to get them.
        rate: The bytes per second at which it receives, once that was measured.
        feeders: The hosts that it was told to read from. Several only if all of them have the whole content.
        fed_by: These, and those that it was told to read from before. It can complain about nobody else.
        fed_since: When it was told to read from them.
        fed_offset: How many bytes it had then.
        depth: 0 if it has everything, 1 if no known host feeds it, else one more than its feeder.
        path_end: The host at the end of its path: a root, a host with the whole content, or one that is not known.
        is_root: Whether its runtime was sent upstream, so that others may wait for it.
        claimed: From which offset on its runtime was sent upstream.
        was_queued: Whether its runtime has said that it fetches other content first.
        has_given_up: Whether its runtime has ended without a byte from upstream.
        is_doubted: Whether it has said that another host may be faster.
        can_share: Whether it can feed others while it receives.
        follows: Whether another host probably asks for the key, too, and should go upstream rather than this one.
        is_whole: Whether it has the whole content.
        whole_since: Since when.
        is_disputed: Whether it has asked for the key although its reports say that it has it whole.
        asked: When it last asked for the key.
        waits_since: Since when it is told to wait.
        is_forming: Whether it waits until a chain has formed.
        is_silent: Whether another host got no answer from it since it was last heard.
        silent_since: Since when.
        is_starving: Whether another host was told that it gets no further bytes.
        is_barred: Whether wrong bytes went over a link of it, so that it feeds nobody while it receives.
        is_slow: Whether it feeds others only if nobody else can.
        is_held_up: Whether it sends so much less than it receives that another host was sent upstream.
        is_superseded: Whether it should ask again.
        is_promoted: Whether it is sent upstream when it asks again.
        is_moved_last: Whether it should ask again once it feeds nobody.
        failed: The hosts about which it has complained.
        blames: The feeders that were called slow because of it.
        lag: By how many bytes it was behind its feeder.
        bad_reports: How many of its reports in a row have shown a slow link.
    """

    host: str
    zone: str
    since: float
    heard: float
    grew: float
    offset: int = 0
    rate: float | None = None
    feeders: tuple[str, ...] = ()
    fed_by: tuple[str, ...] = ()
    fed_since: float = 0.0
    fed_offset: int = 0
    depth: int = 1
    path_end: str = ""
    is_root: bool = False
    claimed: int = 0
    was_queued: bool = False
    has_given_up: bool = False
    is_doubted: bool = False
    can_share: bool = False
    follows: bool = False
    is_whole: bool = False
    whole_since: float = 0.0
    is_disputed: bool = False
    asked: float = float("-inf")
    waits_since: float | None = None
    is_forming: bool = False
    is_silent: bool = False
    silent_since: float = 0.0
    is_starving: bool = False
    is_barred: bool = False
    is_slow: bool = False
    is_held_up: bool = False
    is_superseded: bool = False
    is_promoted: bool = False
    is_moved_last: bool = False
    failed: frozenset[str] = frozenset()
    blames: set[str] = field(default_factory=set[str])
    lag: float = 0.0
    bad_reports: int = 0
    _measured: tuple[float, int] | None = None
    _step: int = 0
    place: Place | None = None

    def __post_init__(self) -> None:
        self.path_end = self.host

    def grow(self, offset: int, now: float) -> bool:
        """Record that it has at least `offset` bytes. Returns whether that is more than was known."""
        if offset <= self.offset:
            return False
        self.offset, self.grew, self.is_starving = offset, now, False
        return True

    def restart(self, offset: int) -> None:
        """Record that it has only `offset` bytes: it has lost, or discarded, the others."""
        self.offset = offset
        self.measure_anew()

    def measure(self, offset: int, now: float) -> bool:
        """Measure its rate. It has said itself that it has `offset` bytes now. Returns whether there is a new rate."""
        if self._measured is None:
            if offset > self.fed_offset:
                self._measured = now, offset
        elif offset > self._measured[1] and now - self._measured[0] >= _WINDOW:
            self._step = offset - self._measured[1]
            rate = self._step / (now - self._measured[0])
            self.rate = rate if self.rate is None else (self.rate + rate) / 2
            self._measured = now, offset
            return True
        return False

    def postpone(self, now: float) -> None:
        """Record that its runtime fetches other content first. If it was sent upstream, it has as much time again."""
        if self.is_root and self.offset <= self.claimed:
            self.grew = self.fed_since = now
            self.was_queued = True

    def read_from(self, feeders: tuple[str, ...], now: float) -> None:
        """Record that it was told to read from `feeders`."""
        before = (each for each in self.fed_by if each not in feeders)
        self.fed_by = (*before, *feeders)[-_REMEMBERED_FEEDERS:]
        self.feeders, self.fed_since, self.fed_offset = feeders, now, self.offset

    def measure_anew(self) -> None:
        """Forget its rate, because it now gets its bytes from somewhere else."""
        self.rate, self._measured, self._step, self.lag, self.bad_reports = None, None, 0, 0.0, 0

    def offset_at(self, now: float) -> float:
        """Return how many bytes it probably has at `now`."""
        return self.offset + (self.rate or 0.0) * min(_EXTRAPOLATED, max(0.0, now - self.grew))

    def average_rate(self, now: float) -> float:
        """Return the bytes per second that it has received since it was told where to get them."""
        return max(0, self.offset - self.fed_offset) / max(now - self.fed_since, _WINDOW)

    def rate_at(self, now: float) -> float | None:
        """Return its rate at `now`, which is lower if it has got nothing for long.

        Runtimes write their files in steps, so a host may have nearly a whole step more than it shows.
        """
        if self.rate is None or self._measured is None or now - self._measured[0] < 2 * _EXTRAPOLATED:
            return self.rate
        return min(self.rate, (self.offset - self._measured[1] + self._step) / (now - self._measured[0]))

    @property
    def step_time(self) -> float:
        """The seconds from one step of its growth to the next; 0 while that was not measured."""
        return self._step / self.rate if self.rate else 0.0

    def has_paused(self, now: float) -> bool:
        """Return whether it has got nothing for longer than its rate explains."""
        return now - self.grew >= max(_PAUSE, _PAUSED_STEPS * self.step_time)

    @property
    def can_feed(self) -> bool:
        """Whether it may feed others."""
        return self.has_content and not self.is_silent and not self.is_slow

    @property
    def takes_share(self) -> bool:
        """Whether it takes a full share of its feeder's uplink, as far as this is known."""
        return not (self.is_superseded or self.is_silent or self.is_slow)

    @property
    def has_content(self) -> bool:
        """Whether it may show others what it has."""
        return self.is_whole or (self.can_share and not self.is_barred)
