"""Which hosts report to a home, and how often each of them should."""

from __future__ import annotations

NEAR_DEPTH = 5
"""Hosts as near as this to the end of their path report as often as if there were few hosts: many depend on them."""
_MIN_INTERVAL, _MAX_INTERVAL = 0.5, 10.0
"""Seconds between two reports of a host, at least and at most."""
_REPORTS_PER_SECOND = 100
"""How many reports a home receives from all hosts together. With more hosts, each reports less often."""
_ACTIVE_TIME = 2.0
"""Seconds for which a host counts as active after its last report."""


class Reporters:
    """The hosts that report to one home."""

    def __init__(self) -> None:
        self._reported: dict[str, float] = {}  # by host: when it last did
        self._soon: dict[str, float] = {}  # hosts whose next report should come soon, until when that counts

    def note(self, host: str, now: float) -> None:
        """Record that a host has just reported."""
        self._reported[host] = now

    def expect_soon(self, host: str, now: float) -> None:
        """Let the next report of a host come soon."""
        self._soon[host] = now + _MIN_INTERVAL

    def seconds_to_next(self, host: str, is_near: bool, now: float) -> float:
        """Return the seconds until the next report of a host that has just reported.

        Args:
            host: The id of the host.
            is_near: Whether it is near the end of the path of a key.
            now: The time.
        """
        if is_near or self._soon.get(host, now) > now:
            return _MIN_INTERVAL
        return min(max(len(self._reported) / _REPORTS_PER_SECOND, _MIN_INTERVAL), _MAX_INTERVAL)

    def are_others_active(self, host: str, now: float) -> bool:
        """Return whether a host other than `host` has reported lately."""
        return any(at + _ACTIVE_TIME > now for each, at in self._reported.items() if each != host)

    def expire(self, now: float) -> None:
        """Forget hosts that have not reported for long."""
        recent = now - 2 * _MAX_INTERVAL
        self._reported = {host: at for host, at in self._reported.items() if at > recent}
        self._soon = {host: until for host, until in self._soon.items() if until > now}
