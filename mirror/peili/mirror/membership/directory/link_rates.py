"""What a home measures of the network, from reports: uplinks, rates from upstream, the delay of a hop, slow hosts."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from peili.mirror.membership.directory.fan_out import UPLINK, Links
from peili.mirror.support.newest import put_newest

_VALID_TIME = 120.0
"""Seconds after which a measured uplink counts no longer."""
_UPSTREAM_TIME = 30.0
"""Seconds after which a rate from upstream is no evidence about other hosts any more."""
_OWN_TIME = 10.0
"""Seconds after which it does not count any more for the host itself."""
_BEST_TIME = 5.0
"""Seconds after which a lower rate takes its place."""
_SERVED_TIME = 120.0
"""Seconds after which it is not known any more whether upstream serves a host."""
_UNSERVED_TIME = 60.0
"""Seconds for which a host that was sent upstream and got nothing is not waited for again."""
_SLOW_TIME = 60.0
"""Seconds after which a slow host is tried again."""
_ALWAYS_SLOW, _MOST_SLOW = 2, 0.25
"""How many hosts can be slow at the same time: a number, and a share of those that feed others."""
_MOST = 1024
"""How many hosts are remembered for each kind of measurement."""
_HOP_MIN, _HOP_MAX = 0.001, 1.0
_HOP_WEIGHT_DOWN, _HOP_WEIGHT_UP = 0.5, 0.02
"""How much one measurement of a hop counts against all before it, if it is shorter and if it is longer. What a hop
itself adds is near the shortest. The rest is the wait for a shared link or processor: a flatter tree would lengthen it.
"""


class LinkRates:
    """The measurements of one home. They are bounded, and the oldest ones are forgotten."""

    def __init__(self) -> None:
        self._upstream: dict[str, tuple[float, float]] = {}  # by host: rate, time
        self._served: dict[str, float] = {}  # by host: when upstream has sent it something
        self._unserved: dict[str, float] = {}  # by host: until when
        self._limited: dict[str, tuple[float, float]] = {}  # by feeder: rate, time
        self._at_least: dict[str, tuple[float, float]] = {}
        self._slow: dict[str, float] = {}  # by host: until when
        self._hop: float | None = None

    def learn_upstream(self, host: str, rate: float | None, now: float) -> None:
        """Record the rate at which `host` has lately received something from upstream.

        Hosts repeat it. What is repeated was not measured again. A rate of 0 says that it was too little to measure.
        The best rate of the last seconds counts: a host may receive several things at the same time.
        """
        if rate is not None:
            put_newest(self._served, host, now, _MOST)
        known, at = self._upstream.get(host, (0.0, now))
        if rate and (rate > known or (rate < known and at + _BEST_TIME <= now)):
            put_newest(self._upstream, host, (rate, now), _MOST)

    def learn_uplink(self, feeder: str, rate: float, is_limited: bool, now: float) -> None:
        """Record the rate at which `feeder` sends to all its children.

        Args:
            feeder: The id of the host.
            rate: The rate in bytes per second.
            is_limited: Whether it had more to send. If not, its uplink may be faster than that.
            now: The time.
        """
        if is_limited:
            self._at_least.pop(feeder, None)
            put_newest(self._limited, feeder, (rate, now), _MOST)
        elif rate > _fresh(self._limited, feeder, now, _VALID_TIME) * 1.2:
            self._limited.pop(feeder, None)
            best = max(rate, _fresh(self._at_least, feeder, now, _VALID_TIME))
            put_newest(self._at_least, feeder, (best, now), _MOST)

    def learn_hop(self, seconds: float) -> None:
        """Record by how many seconds a host was behind its feeder."""
        seconds = min(max(seconds, _HOP_MIN), _HOP_MAX)
        before = Links().hop if self._hop is None else self._hop
        weight = _HOP_WEIGHT_UP if seconds > before else _HOP_WEIGHT_DOWN
        self._hop = before + weight * (seconds - before)

    def mark_slow(self, host: str, now: float) -> None:
        """Record that others should not wait for what `host` sends.

        Nothing is recorded if too many are slow already, because the measure is wrong then.
        """
        self._slow = {each: until for each, until in self._slow.items() if until > now}
        known = len(self._limited) + len(self._at_least)
        if len(self._slow) >= max(_ALWAYS_SLOW, known * _MOST_SLOW):
            return
        put_newest(self._slow, host, now + _SLOW_TIME, _MOST)

    def clear_slow(self, host: str) -> None:
        """Record that `host` was called slow because of somebody else."""
        self._slow.pop(host, None)

    def has_upstream(self, host: str, now: float) -> bool:
        """Return whether `host` has received something from upstream lately."""
        return self._served.get(host, float("-inf")) + _SERVED_TIME > now

    def mark_unserved(self, host: str, now: float) -> None:
        """Record that `host` was sent upstream and got nothing."""
        put_newest(self._unserved, host, now + _UNSERVED_TIME, _MOST)

    def is_unserved(self, host: str, now: float) -> bool:
        """Return whether `host` was sent upstream lately and got nothing."""
        return self._unserved.get(host, now) > now

    def is_slow(self, host: str, now: float) -> bool:
        """Return whether `host` was called slow lately."""
        if self._slow.get(host, now) > now:
            return True
        self._slow.pop(host, None)
        return False

    def upstream_of(self, host: str, now: float) -> float:
        """Return the rate at which `host` has received something from upstream lately; 0 if it is not known."""
        return _fresh(self._upstream, host, now, _OWN_TIME)

    def upstream_of_others(self, host: str, since: float, now: float) -> float | None:
        """Return the rate at which other hosts have received from upstream: the median of the better half.

        Args:
            host: The host whose own rate is left out.
            since: What was measured before this time is left out.
            now: The time.
        """
        valid = min(_UPSTREAM_TIME, now - since)
        rates = sorted(rate for each, rate in _recent(self._upstream, now, valid) if each != host)
        return median(rates[len(rates) // 2 :]) if rates else None

    def usual_uplink(self, now: float, without: str = "") -> float | None:
        """Return an uplink that hosts other than `without` have, as far as it is known."""
        limited = [rate for host, rate in _recent(self._limited, now, _VALID_TIME) if host != without]
        # Those that had nothing more to send may be far from their limit, so only the fastest one counts.
        at_least = [rate for host, rate in _recent(self._at_least, now, _VALID_TIME) if host != without]
        return max([*([median(limited)] if limited else []), *at_least], default=None)

    def possible_uplink(self, now: float) -> float:
        """Return the rate that links can have: what was measured, or else what is usual."""
        limited = [rate for _, rate in _recent(self._limited, now, _VALID_TIME)]
        return median(limited) if limited else max(UPLINK, self.usual_uplink(now) or 0.0)

    def links(self, upstream: float | None, now: float) -> Links:
        """Return what is known now.

        Args:
            upstream: The rate at which the content comes from upstream; None if it is not known.
            now: The time.
        """
        limited = sorted(rate for host, rate in _recent(self._limited, now, _VALID_TIME) if not self.is_slow(host, now))
        at_least = [rate for _, rate in _recent(self._at_least, now, _VALID_TIME)]
        prior = Links()
        if not limited and not at_least:
            upstream = None  # nobody knows whether uplinks are faster than that
        # A quarter of them may have been measured in a bad moment.
        uplink = limited[len(limited) // 4] if limited else max(at_least, default=prior.uplink)
        return Links(uplink, prior.hop if self._hop is None else self._hop, upstream)


def _fresh(table: dict[str, tuple[float, float]], host: str, now: float, valid: float) -> float:
    rate, at = table.get(host, (0.0, now))
    return rate if at + valid > now else 0.0


def _recent(table: dict[str, tuple[float, float]], now: float, valid: float) -> Iterator[tuple[str, float]]:
    """Yield the hosts and rates that still count, the newest ones first."""
    for host, (rate, at) in reversed(table.items()):
        if at + valid <= now:
            return
        yield host, rate
