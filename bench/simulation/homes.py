"""The homes of the simulated cluster: the real records and claims, on the simulation's clock. Messages are counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from peili.mirror import Limits
from peili.mirror.membership.directory.claims import Claims
from peili.mirror.membership.directory.homes import HomeSet, choose_homes, slot_of
from peili.mirror.membership.directory.records import Records
from peili.mirror.peer_api.directory import Holding, Holdings
from peili.mirror.peer_api.leases import ClaimRequest, Grant, LeaseReport

_INTERVAL = 600.0
"""Seconds between heartbeats, which are left out."""


class Home:
    """One home."""

    def __init__(self, name: str, limits: Limits, clock: Callable[[], float]) -> None:
        self.records = Records(name, limits, lambda _: None, clock)
        self.claims = Claims(limits, self.records, zone_of=lambda _: None, limited=lambda _: None, clock=clock)


class View:
    """What a part of the cluster takes for the cluster: members that know each other, and their homes.

    Args:
        members: The ids of the members.
        limits: The limits.
        clock: Returns the time of the simulation.

    Attributes:
        dead: Homes that do not answer any more.
        messages: How many messages of each kind were sent to homes.
        at_home: How many messages each home has got.
    """

    def __init__(self, members: Sequence[str], limits: Limits, clock: Callable[[], float]) -> None:
        self.dead: set[str] = set()
        self.messages = Counter[str]()
        self.at_home = Counter[str]()
        self._limits = limits
        self._clock = clock
        self._ids = choose_homes(members)
        self._set = HomeSet(self._ids)
        self._sets: dict[frozenset[str], HomeSet] = {}
        self._homes: dict[str, Home] = {}
        self._sequences: dict[tuple[str, str], int] = defaultdict(int)

    def homes_of(self, key: str, known_dead: set[str]) -> tuple[str, ...]:
        """Return the homes of a key for a host that knows these homes to be dead."""
        if not known_dead:
            return self._set.homes_of(slot_of(key))
        ids = frozenset(self._ids - known_dead)
        return self._sets.setdefault(ids, HomeSet(ids)).homes_of(slot_of(key))

    def acquire(self, home: str, request: ClaimRequest) -> Grant:
        """Ask a home that lives."""
        self._count("acquire", home)
        return self._home(home).claims.acquire(request)

    def report(
        self, home: str, host: str, entries: Sequence[LeaseReport], rate: float | None
    ) -> tuple[list[str], float]:
        """Report to a home. A dead one answers nothing."""
        if home in self.dead:
            return [], 1.0
        self._count("leases", home)
        return self._home(home).claims.report(host, entries, rate)

    def publish(self, home: str, host: str, holding: Holding, doubted: str | None) -> None:
        """Report to a home what the store of a host has, and for which key it takes its way to upstream for slow."""
        self._report_holding(home, host, have=(holding,))
        if doubted is not None and home not in self.dead:
            self._home(home).claims.doubt(host, doubted)

    def withdraw(self, home: str, host: str, key: str) -> None:
        """Report to a home that the store of a host has nothing of a key any more."""
        self._report_holding(home, host, gone=(key,))

    def _report_holding(
        self, home: str, host: str, *, have: tuple[Holding, ...] = (), gone: tuple[str, ...] = ()
    ) -> None:
        if home in self.dead:
            return
        self._count("holdings", home)
        sequence = self._sequences[host, home]
        self._sequences[host, home] += 1
        homes = tuple(self._ids) if sequence == 0 else None
        message = Holdings("s", sequence, _INTERVAL, homes, True, have=have, gone=gone)
        self._home(home).records.apply(host, message)

    def expire(self) -> None:
        """Let the homes forget what is too old."""
        for name, home in self._homes.items():
            if name not in self.dead:
                home.claims.expire()

    def _home(self, name: str) -> Home:
        home = self._homes.get(name)
        if home is None:
            home = self._homes[name] = Home(name, self._limits, self._clock)
        return home

    def _count(self, kind: str, home: str) -> None:
        self.messages[kind] += 1
        self.at_home[home] += 1
