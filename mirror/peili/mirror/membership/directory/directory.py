"""One host's part of the directory: it reports its keys to the homes, asks them for holders, and is a home itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from contextlib import suppress

from peili.mirror.limits import Limits
from peili.mirror.membership.directory.claiming import Asking, Claiming
from peili.mirror.membership.directory.home import Home
from peili.mirror.membership.directory.home_client import FIRST_ANSWER, HomeClient
from peili.mirror.membership.directory.homes import HomeSet, choose_homes, slot_of
from peili.mirror.membership.directory.leases import Leases
from peili.mirror.membership.directory.member_search import MemberSearch
from peili.mirror.membership.directory.members import MemberIds
from peili.mirror.membership.directory.publisher import Publisher
from peili.mirror.membership.directory.takeover import Takeover
from peili.mirror.membership.directory.upstream_rates import UpstreamFetches
from peili.mirror.membership.peer_health import PeerHealth
from peili.mirror.oci.references import Key
from peili.mirror.peer_api.directory import HoldersAnswer
from peili.mirror.peer_api.messages import MAX_KEY_LENGTH, MAX_SECONDS
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.plugins.content import Have, StoreEvent
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.tasks import Tasks

_UPDATE_INTERVAL = 1.0
"""Seconds after which the homes are computed again even if no member has changed: a replaced home may come back."""
_GATHER_TIME = 0.05
"""Seconds for which changes of the members are gathered."""
_SECOND_ANSWER = 0.05
"""Seconds to wait for the other home after the first answer."""
_USELESS_TIME = 2.0
"""Seconds for which a home that knows less than half of the members is not asked."""
_MESSAGES_PER_SECOND = 10
"""How many messages a home receives from all members together. With more members, each sends less often."""
_MAX_INTERVAL = 600.0


def message_interval(members: int, limits: Limits) -> float:
    """Return the seconds between two messages of a host to a home, if there are so many members."""
    return min(max(limits.directory_heartbeat, min(members / _MESSAGES_PER_SECOND, _MAX_INTERVAL)), MAX_SECONDS)


class Directory:
    """The directory of one `MembershipRouter` while it runs. For use on one loop.

    Everything that homes report is a hint. A lookup assumes that a member lacks a key only if a home is synced with
    that member. `find` returns all other members, and the caller asks them itself.

    Args:
        context: The router's context.
        health: The members.
        tasks: Owns the tasks that run.

    Attributes:
        limits: The limits.
        members: The members by their ids.
        home: This host as a home.
        publisher: Reports to the homes what this host has.
        leases: What homes have granted to this host.
        claiming: Asks homes where this host gets a key.
    """

    def __init__(self, context: Context, health: PeerHealth, tasks: Tasks) -> None:
        self.limits = context.limits
        self._context = context
        self._health = health
        self._tasks = tasks
        self.members = MemberIds(context, health, tasks)
        self.home = Home(context, tasks, self.members.zone_of, self._first_home)
        self._client = HomeClient(context, health, self.members, self.home)
        self._upstream = UpstreamFetches(time.monotonic)
        self.publisher = Publisher(
            context.limits,
            tasks,
            self._client.send_holdings,
            self._interval,
            identity=context.identity,
            is_awaited=self._upstream.__contains__,
            upstream_rate=self._upstream.best_rate,
            doubted=self._upstream.doubted,
        )
        self.leases = Leases(tasks, self._client.report, self.members.id_of, self._upstream, context.is_drained)
        self.claiming = Claiming(tasks, self._client, self.leases, self._homes_of)
        self._takeover = Takeover(tasks, self._client, self._upstream, self._first_home, self.leases.report_to)
        self._search = MemberSearch(self._look_for_members, lambda: health.version, context.limits.backoff_max)
        self._homes = HomeSet(frozenset())
        self._candidates: frozenset[str] | None = None
        self._useless: dict[str, float] = {}  # homes that are not asked until this time
        self._expires = float("-inf")  # when this home forgets again what is too old

    async def run(self) -> None:
        """Follow the members until cancelled."""
        try:
            while True:
                changed = self._health.changes.next_change
                try:
                    self._update()
                except Exception:  # without this task, no host would be a home any more
                    self._context.log.exception("updating the directory failed, which is a bug")
                with suppress(TimeoutError):
                    async with asyncio.timeout(_UPDATE_INTERVAL if self._health.members() else None):
                        await changed.wait()
                await asyncio.sleep(_GATHER_TIME)
        finally:
            self._search.close()

    def advertise(self, have: Collection[StoreEvent]) -> None:
        """Record that this host has these keys, and report it to their homes."""
        for event in have:
            if isinstance(event, Have) and (key := str(event.key)) in self._upstream:
                if event.complete:
                    self._upstream.complete(key, event.size)
                else:
                    self._upstream.grow(key, event.available or 0, event.size)
        self.publisher.advertise(have)

    def withdraw(self, keys: Collection[Key]) -> None:
        """Record that this host no longer has these keys, and report it to their homes."""
        for key in keys:
            self._upstream.end(str(key))
        self.publisher.withdraw(keys)

    def note_restart(self, host: str) -> None:
        """Note that `host` has just started, or just learned of this host.

        It lacks what this host reported to it, and it can be a home again.
        """
        self.publisher.send_now(host)
        self._client.restore(host)
        self._takeover.run()

    def note_message(self, member: Peer) -> None:
        """Note that a member has sent something. If it counts as dead, it is probed now."""
        self._health.probe_dead(member.id)

    def note_stranger(self) -> None:
        """Note that a host has sent something that is no member, as far as is known.

        It may be a member that has just started. Until this host knows its id, the two choose different homes.
        """
        self._search.run()

    def _look_for_members(self) -> None:
        self._health.probe_dead()
        self.members.ask_now()

    async def find(self, key: Key) -> tuple[list[Holder], list[Peer]]:
        """Ask the homes of `key` who has it.

        If they are just being asked where this host gets the key, that answer is used, too. Takes at most
        `FIRST_ANSWER` plus `_SECOND_ANSWER` seconds. Raises nothing.

        Returns:
            The holders of the whole content, and the members for which the homes don't know whether they have it.
        """
        live, homes = self.members.live(), self._homes_of(str(key))
        answers = await self._ask_homes(homes, key)
        found = {holder for answer in answers.values() for holder in _complete_holders(answer)} & live.ids
        lists = {home: answer.hosts for home, answer in answers.items() if answer.hosts is not None}
        known = frozenset[str]().union(*lists.values())
        if answers and 2 * len(live.ids & known) < len(live.ids):
            until = asyncio.get_running_loop().time() + _USELESS_TIME
            for home in homes:
                self._useless.setdefault(home, until)  # not longer: what counts is when it was asked
        # The size is left out. It comes from the home, and a wrong one would count against the holder.
        holders = [Holder(live.by_id[each], complete=True) for each in found]
        unsure = {home for home, hosts in lists.items() if home not in hosts}  # of what they have themselves
        unknown = [live.by_id[each] for each in live.ids - (known - unsure) - found]
        return holders, [*unknown, *live.others]

    def home_peer(self, key: str) -> Peer | None:
        """Return the first home of a key; None if it is this host, or does not answer."""
        home = self._first_home(key)
        return None if home is None else self.members.live().by_id.get(home)

    def _update(self) -> None:
        """Choose the homes anew, and forget what has expired."""
        now = asyncio.get_running_loop().time()
        self.members.ask_unknown()
        records = self.home.records
        if now >= self._expires:  # not at each change: it looks at all that this home knows
            self._expires = now + _UPDATE_INTERVAL
            self.home.expire()
        for each in (self._client, self._upstream):
            each.expire()
        for host in [host for host in records.hosts if self._is_no_member(host)]:
            records.forget(host)
        self._useless = {home: until for home, until in self._useless.items() if until > now}
        candidates = self._possible_homes()
        if candidates != self._candidates:
            self._choose_homes(candidates)
        self._takeover.run()

    def _possible_homes(self) -> frozenset[str]:
        """Return the other members that can be homes."""
        return self.members.live().ids - self._client.replaced.keys()

    def _choose_homes(self, candidates: frozenset[str]) -> None:
        self._candidates = candidates
        homes = choose_homes(candidates | {self._context.identity}) if candidates else frozenset[str]()
        if homes != self._homes.ids:
            before, self._homes = self._homes, HomeSet(homes)
            self._client.keep(homes)
            self.publisher.set_homes(self._homes)
            if self._context.identity not in homes:  # this host does not report to itself any more
                self.home.records.forget(self._context.identity)
            self.home.claims.settle()
            self.leases.move(lambda key, home: self._moved_home(key, home, before))

    def _homes_of(self, key: str) -> tuple[str, ...]:
        if not self._homes.ids and (candidates := self._possible_homes()):
            self._choose_homes(candidates)  # the first members count at once: without homes, each host goes upstream
        return self._homes.homes_of(slot_of(key)) if len(key) <= MAX_KEY_LENGTH else ()

    def _first_home(self, key: str) -> str | None:
        return next(iter(self._homes_of(key)), None)

    def _moved_home(self, key: str, home: str, before: HomeSet) -> str | None:
        """Return the home that now decides about `key`: another one if `home` was the first one, or is gone."""
        was_first = next(iter(before.homes_of(slot_of(key))), None) == home
        return self._first_home(key) if was_first or home not in self._homes.ids else home

    def _is_no_member(self, host: str) -> bool:
        return host != self._context.identity and self.members.member(host) is None

    def _interval(self) -> float:
        """Return the seconds between two messages to a home. They grow with the members, to spare the homes."""
        return message_interval(len(self.members.live().ids), self._context.limits)

    async def _ask_homes(self, homes: Collection[str], key: Key) -> Mapping[str, HoldersAnswer]:
        """Return the answers that the homes of `key` send in time, by home. Stop waiting when one has a holder.

        A request that takes longer goes on in the background, which shows whether the home is dead.
        """
        answers: dict[str, HoldersAnswer] = {}
        requests: dict[asyncio.Task[HoldersAnswer | None], str] = {}
        asking = self.claiming.under_way(str(key))
        useful = [home for home in homes if home not in self._useless]
        for home in [home for home in useful if not self._client.is_slow(home)] or useful:
            if home == self._context.identity:
                answers[home] = self.home.records.find(str(key))
            elif asking is not None and home == asking.home:
                requests[self._tasks.start(_known(asking))] = home
            else:
                requests[self._tasks.start(self._client.find(home, key))] = home
        waiting = set(requests)
        while waiting and not any(self.members.live().ids & _complete_holders(each) for each in answers.values()):
            try:
                async with Deadline(_SECOND_ANSWER if answers else FIRST_ANSWER):
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            except TimeoutError:
                for each in waiting:
                    self._client.mark_slow(requests[each])
                break
            for each in done:
                if not each.cancelled() and each.exception() is None and (answer := each.result()) is not None:
                    answers[requests[each]] = answer
        return answers


async def _known(asking: Asking) -> HoldersAnswer | None:
    """Return what the home that answers first knows."""
    claimed = await asyncio.shield(asking.answer)
    return None if claimed is None else claimed.granted.known


def _complete_holders(answer: HoldersAnswer) -> set[str]:
    """Return the ids of the holders of the whole content."""
    return {each.id for each in answer.holders if each.available is None}
