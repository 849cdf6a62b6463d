"""The records of a home: which hosts have which keys, as the hosts report. No I/O.

The state is soft. A host repeats everything if the home has lost it, and a host that is silent is forgotten.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from peili.mirror.limits import Limits
from peili.mirror.membership.directory.homes import HomeSet, slot_of
from peili.mirror.peer_api.directory import HoldersAnswer, Holding, Holdings, KnownHolder

HOLDERS_PER_KEY = 64
"""How many holders of a key are kept."""
MISSED_INTERVALS = 4
"""A host that was silent for this many of its intervals is forgotten."""
_DOUBTED_INTERVALS = 2
"""A host that was silent for this many of its intervals may have more than this home knows."""
_MAX_HOME_SETS = 8
"""The number of sets of homes whose hosts `Records.find` returns. There are several only while the members change."""


@dataclass(eq=False, slots=True)
class _Session:
    """What one host has reported since its message 0.

    Attributes:
        homes: The homes among which the host divides its keys.
        heard: When its last message came.
        is_listed: Whether the host is in `_HostList.hosts` of its homes.
        is_over_limit: Whether it has more keys than are kept.
    """

    host: str
    name: str
    homes: _HostList
    sequence: int = 0
    heard: float = float("-inf")
    doubted_at: float = 0.0
    expires: float = 0.0
    is_listed: bool = False
    is_over_limit: bool = False
    keys: set[str] = field(default_factory=set[str])


@dataclass(frozen=True, slots=True)
class _Record:
    session: _Session
    size: int | None
    available: int | None


@dataclass(slots=True)
class _Holders:
    """The holders of one key.

    Attributes:
        key: The key. All sessions use this object, because the text of a key takes more memory than its record.
        records: The holders that are kept.
        not_kept: How many others there are.
        partial_not_kept: Those of the others that have only a part of the content; None if there are none, as for most
            keys.
    """

    key: str
    records: list[_Record] = field(default_factory=list[_Record])
    not_kept: int = 0
    partial_not_kept: set[_Session] | None = None


class _HostList:
    """The hosts that divide their keys among the same homes, and that this home is synced with.

    Attributes:
        number: Names it in versions.
        sessions: How many sessions use it, synced or not.
    """

    def __init__(self, number: int, homes: HomeSet) -> None:
        self.number = number
        self.homes = homes
        self.sessions = 0
        self.hosts: set[str] = set()


class Records:
    """The records of one home. Used on one event loop.

    A record is kept for as long as the host that it is about repeats itself. For a key, a home keeps at most
    `HOLDERS_PER_KEY` holders, taken at random. A holder of the complete content takes the place of one that has a part.

    Args:
        identity: The id of this host, which is the home.
        limits: ``directory_keys`` and ``directory_records``.
        limited: Called with the name of a limit when a host reaches it.
        clock: Returns a time in seconds that never goes back.
    """

    def __init__(
        self,
        identity: str,
        limits: Limits,
        limited: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity = identity
        self._limits = limits
        self._limited = limited
        self._clock = clock
        self._run = secrets.token_hex(8)  # versions of an earlier run of this home mean nothing
        self._changes = 0  # of the lists of hosts
        self._sessions: dict[str, _Session] = {}  # by host
        self._holders: dict[str, _Holders] = {}  # by key
        self._lists: dict[frozenset[str], _HostList] = {}
        self._count = 0

    def __len__(self) -> int:
        """Return the number of records."""
        return self._count

    @property
    def hosts(self) -> Collection[str]:
        """The hosts that have a session."""
        return self._sessions.keys()

    def apply(self, host: str, message: Holdings) -> bool:
        """Record what `host` reports about itself.

        Returns:
            Whether the message was accepted. If not, it does not follow the messages that this home knows: the host
            must begin a new session, and send everything.
        """
        session = self._sessions.get(host)
        if message.sequence == 0:
            if message.homes is None:
                return False
            if session is None or session.name != message.session:
                self.forget(host)
                session = self._sessions[host] = _Session(host, message.session, self._list_of(message.homes))
                session.homes.sessions += 1
        if session is None or session.name != message.session or message.sequence - session.sequence not in {0, 1}:
            return False
        session.sequence, session.heard = message.sequence, self._clock()
        session.doubted_at = session.heard + _DOUBTED_INTERVALS * message.interval
        session.expires = session.heard + MISSED_INTERVALS * message.interval
        if message.homes is not None:
            self._move(session, message.homes)
        for key in message.gone:
            self._remove(session, key)
        for holding in message.have:
            self._add(session, holding)
        self._set_listed(session, message.is_synced and not session.is_over_limit)
        return True

    def find(self, key: str, known: Collection[str] = (), *, is_own_known: bool = True) -> HoldersAnswer:
        """Return what this home knows about `key`.

        Args:
            key: The key.
            known: Versions of the list of hosts that need not be in the answer.
            is_own_known: Whether this host knows what its own store has. If not, the list of hosts is without it, so
                that it is asked as a member.
        """
        of_key = self._holders.get(key) or _Holders(key)
        records = of_key.records
        holders = self.holders_of(key)
        random.shuffle(holders)
        slot, lists = slot_of(key), list[_HostList]()
        complete = sum(each.available is None for each in records)
        complete_not_kept = of_key.not_kept - len(of_key.partial_not_kept or ())
        if not complete_not_kept or complete > HOLDERS_PER_KEY // 2:
            lists = [
                each for each in self._lists.values() if each.hosts and self._identity in each.homes.homes_of(slot)
            ]
        if len(lists) > _MAX_HOME_SETS:
            lists = sorted(lists, key=lambda each: len(each.hosts))[-_MAX_HOME_SETS:]
        version = f"{self._run}.{self._changes}.{'-'.join(str(each.number) for each in lists)}"
        version += "" if is_own_known else "-others"
        hosts = None if version in known else frozenset[str]().union(*(each.hosts for each in lists))
        if hosts is not None and not is_own_known:
            hosts -= {self._identity}
        return HoldersAnswer(tuple(holders), version, hosts)

    def heard_at(self, host: str) -> float:
        """Return when the last message of `host` came; negative infinity if none is known."""
        session = self._sessions.get(host)
        return float("-inf") if session is None else session.heard

    def holders_of(self, key: str) -> list[KnownHolder]:
        """Return the holders of `key` that are kept, whole or in flight."""
        of_key = self._holders.get(key)
        records = () if of_key is None else of_key.records
        return [KnownHolder(each.session.host, each.size, each.available) for each in records]

    def expire(self) -> None:
        """Forget the hosts that were silent for too long. Call it at intervals."""
        now = self._clock()
        for session in self._sessions.values():
            if session.doubted_at <= now:
                self._set_listed(session, False)
        for host in [host for host, session in self._sessions.items() if session.expires <= now]:
            self.forget(host)

    def forget(self, host: str) -> None:
        """Forget everything that `host` reported. Unknown hosts are ignored."""
        session = self._sessions.pop(host, None)
        if session is None:
            return
        self._leave_list(session)
        for key in tuple(session.keys):
            self._remove(session, key)

    def _move(self, session: _Session, homes: tuple[str, ...]) -> None:
        """Note that the host now divides its keys among `homes`."""
        moved = self._list_of(homes)
        if moved is not session.homes:
            self._leave_list(session)
            session.homes = moved
            moved.sessions += 1

    def _list_of(self, homes: tuple[str, ...]) -> _HostList:
        ids = frozenset(homes)
        found = self._lists.get(ids)
        if found is None:
            self._changes += 1
            found = self._lists[ids] = _HostList(self._changes, HomeSet(ids))
        return found

    def _leave_list(self, session: _Session) -> None:
        self._set_listed(session, False)
        session.homes.sessions -= 1
        if not session.homes.sessions:
            self._lists.pop(session.homes.homes.ids, None)

    def _set_listed(self, session: _Session, is_listed: bool) -> None:
        if session.is_listed == is_listed:
            return
        session.is_listed = is_listed
        self._changes += 1
        if is_listed:
            session.homes.hosts.add(session.host)
        else:
            session.homes.hosts.discard(session.host)

    def _add(self, session: _Session, holding: Holding) -> None:
        self._remove(session, holding.key)
        if len(session.keys) >= self._limits.directory_keys or self._count >= self._limits.directory_records:
            self._refuse(session)
            return
        of_key = self._holders.setdefault(holding.key, _Holders(holding.key))
        session.keys.add(of_key.key)
        records = of_key.records
        record = _Record(session, holding.size, holding.available)
        if len(records) < HOLDERS_PER_KEY:
            records.append(record)
            self._count += 1
            return
        if holding.available is None:
            for index, other in enumerate(records):
                if other.available is not None:
                    records[index], record = record, other
                    break
        of_key.not_kept += 1
        if record.available is not None:
            of_key.partial_not_kept = of_key.partial_not_kept or set()
            of_key.partial_not_kept.add(record.session)

    def _refuse(self, session: _Session) -> None:
        """Stop listing a session with keys that are not kept, so that lookups ask the host itself."""
        if not session.is_over_limit:
            session.is_over_limit = True
            limit = "directory_records" if self._count >= self._limits.directory_records else "directory_keys"
            self._limited(limit)

    def _remove(self, session: _Session, key: str) -> None:
        if key not in session.keys:
            return
        session.keys.discard(key)
        of_key = self._holders[key]
        records = of_key.records
        for index, record in enumerate(records):
            if record.session is session:
                del records[index]
                self._count -= 1
                break
        else:
            of_key.not_kept -= 1
            if of_key.partial_not_kept is not None:
                of_key.partial_not_kept.discard(session)
        if not records and not of_key.not_kept:
            del self._holders[key]
