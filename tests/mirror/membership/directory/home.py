"""A home whose clock the test moves."""

from __future__ import annotations

from typing import Any

from peili.mirror import Limits
from peili.mirror.membership.directory.claims import Claims
from peili.mirror.membership.directory.records import Records
from peili.mirror.peer_api.directory import Holding, Holdings
from peili.mirror.peer_api.leases import ClaimRequest, FeedFrom, Grant, LeaseReport

KEY = "sha256:" + "0" * 64
MIB = 1024 * 1024


class Home:
    """The claims of a home, with a clock that the test moves."""

    def __init__(self, zones: dict[str, str] | None = None, **limits: Any) -> None:
        self.now = 1000.0
        self.limited = list[str]()
        self.sequences = dict[str, int]()
        self.limits = Limits(**limits)
        self.records = Records("home", self.limits, self.limited.append, lambda: self.now)
        self.claims = Claims(
            self.limits,
            self.records,
            zone_of=(zones or {}).get,
            limited=self.limited.append,
            clock=lambda: self.now,
        )

    def ask(self, host: str, offset: int = 0, key: str = KEY, **changes: Any) -> Grant:
        """Ask. If the host becomes a root, others need not wait until a chain has formed, as if it were an old one."""
        grant = self.ask_at_once(host, offset, key, **changes)
        fetch = self.claims.table.find(key)
        if fetch is not None and fetch.begun_at is not None:
            fetch.begun_at -= 1.0
        return grant

    def ask_at_once(self, host: str, offset: int = 0, key: str = KEY, **changes: Any) -> Grant:
        values: dict[str, Any] = {"size": 64 * MIB, "can_share": True, **changes}
        return self.claims.acquire(ClaimRequest(host, key, offset, **values))

    def feeder(self, host: str, offset: int = 0, key: str = KEY, **changes: Any) -> str:
        """Ask, and return the first feeder, which is the only one if it is not whole."""
        grant = self.ask(host, offset, key, **changes)
        assert isinstance(grant, FeedFrom), grant
        assert len(grant.holders) == 1 or all(each.available is None for each in grant.holders)
        return grant.holders[0].id

    def has(self, host: str, available: int | None, key: str = KEY) -> None:
        """Report to the records what the store of `host` has; None is everything."""
        self._publish(host, have=(Holding(key, 64 * MIB, available),))

    def gone(self, host: str, key: str = KEY) -> None:
        """Report to the records that the store of `host` has nothing any more."""
        self._publish(host, gone=(key,))

    def _publish(self, host: str, **changes: Any) -> None:
        self.sequences[host] = sequence = self.sequences.get(host, -1) + 1
        homes = ("home",) if sequence == 0 else None
        assert self.records.apply(host, Holdings("s", sequence, 60.0, homes, True, **changes))

    def report(self, host: str, offset: int, feeder: str | None = None, key: str = KEY, **changes: Any) -> list[str]:
        superseded, seconds = self.claims.report(host, [LeaseReport(key, offset, feeder, **changes)], None)
        assert seconds > 0
        return superseded
