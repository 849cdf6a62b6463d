"""One host's part of the directory: it reports its keys to the homes, asks them for holders, and is a home itself."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress

from peili.mirror.client.client import KEEP_ALIVE
from peili.mirror.client.connection import ResponseHead
from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.membership.directory.homes import HomeSet, choose_homes, slot_of
from peili.mirror.membership.directory.members import MemberIds
from peili.mirror.membership.directory.publisher import Publisher, Reply
from peili.mirror.membership.directory.records import Records
from peili.mirror.membership.peer_health import PeerHealth
from peili.mirror.oci.references import Key
from peili.mirror.peer_api.directory import (
    HOLDERS_PATH,
    HOLDINGS_PATH,
    HoldersAnswer,
    HoldersQuery,
    Holdings,
)
from peili.mirror.peer_api.messages import JSON_HEADERS, MAX_KEY_LENGTH, MAX_MESSAGE
from peili.mirror.peer_api.peers import IDENTITY_HEADER, Holder, Peer
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.tasks import Backoff, Tasks

_UPDATE_INTERVAL = 1.0
"""Seconds after which the homes are computed again even if no member has changed: a replaced home may come back."""
_GATHER_TIME = 0.05
"""Seconds for which changes of the members are gathered."""
_FIRST_ANSWER = 0.25
"""Seconds to wait for the first answer of a home."""
_SECOND_ANSWER = 0.05
"""Seconds to wait for the other home after the first answer."""
_SLOW_TIME = 2.0
"""Seconds for which a home that did not answer in time is asked only if the other home is slow, too."""
_USELESS_TIME = 2.0
"""Seconds for which a home that knows less than half of the members is not asked."""
_REST_MIN, _REST_MAX = 1.0, 60.0
"""Seconds for which a home that was busy, unreachable or wrong is replaced: the first time, and at most."""
_MESSAGES_PER_SECOND = 10
"""How many messages a home receives from all members together. With more members, each sends less often."""
_MAX_INTERVAL = 600.0
_VERSIONS = 4
"""How many lists of hosts are remembered for each home."""


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
        records: What this host knows as a home.
        publisher: Reports to the homes what this host has.
    """

    def __init__(self, context: Context, health: PeerHealth, tasks: Tasks) -> None:
        self.limits = context.limits
        self._context = context
        self._health = health
        self._tasks = tasks
        self.members = MemberIds(context, health, tasks)
        self.records = Records(context.identity, context.limits, context.limited)
        self.publisher = Publisher(context.limits, tasks, self._send, self._interval)
        self._homes = HomeSet(frozenset())
        self._candidates: frozenset[str] | None = None
        self._replaced: dict[str, float] = {}  # homes that are not homes until this time
        self._rests: dict[tuple[str, str], Backoff] = {}  # by home and by what failed
        self._slow: dict[str, float] = {}  # homes that answered late, until when that counts
        self._useless: dict[str, float] = {}  # homes that are not asked until this time
        self._hosts: dict[str, OrderedDict[str, frozenset[str]]] = {}  # by home and version; see `HoldersAnswer`

    async def run(self) -> None:
        """Follow the members until cancelled."""
        while True:
            changed = self._health.changes.next_change
            self._update()
            with suppress(TimeoutError):
                async with asyncio.timeout(_UPDATE_INTERVAL if self._health.members() else None):
                    await changed.wait()
            await asyncio.sleep(_GATHER_TIME)

    async def find(self, key: Key) -> tuple[list[Holder], list[Peer]]:
        """Ask the homes of `key` who has it.

        Takes at most `_FIRST_ANSWER` plus `_SECOND_ANSWER` seconds. Raises nothing.

        Returns:
            The holders of the whole content, and the members for which the homes don't know whether they have it.
        """
        live, text = self.members.live(), str(key)
        homes = self._homes.homes_of(slot_of(text)) if len(text) <= MAX_KEY_LENGTH else ()
        answers = await self._ask_homes(homes, key)
        found = {holder for answer in answers for holder in _complete_holders(answer)} & live.ids
        known = frozenset[str]().union(*(answer.hosts for answer in answers if answer.hosts is not None))
        if answers and 2 * len(live.ids & known) < len(live.ids):
            until = asyncio.get_running_loop().time() + _USELESS_TIME
            for home in homes:
                self._useless.setdefault(home, until)  # not longer: what counts is when it was asked
        # The size is left out. It comes from the home, and a wrong one would count against the holder.
        holders = [Holder(live.by_id[each], complete=True) for each in found]
        unknown = [live.by_id[each] for each in live.ids - known - found]
        return holders, [*unknown, *live.others]

    def _update(self) -> None:
        """Choose the homes anew, and forget what has expired."""
        now = asyncio.get_running_loop().time()
        self.members.ask_unknown()
        self.records.expire()
        for host in [each for each in self.records.hosts if self._is_no_member(each)]:
            self.records.forget(host)
        for table in (self._replaced, self._slow, self._useless):
            for home in [home for home, until in table.items() if until <= now]:
                del table[home]
        candidates = self.members.live().ids - self._replaced.keys()
        if candidates == self._candidates:
            return
        self._candidates = candidates
        homes = choose_homes(candidates | {self._context.identity}) if candidates else frozenset[str]()
        if homes != self._homes.ids:
            self._homes = HomeSet(homes)
            self._hosts = {home: hosts for home, hosts in self._hosts.items() if home in homes}
            self._rests = {home: rest for home, rest in self._rests.items() if self.members.member(home[0]) is not None}
            self.publisher.set_homes(self._homes)

    def _is_no_member(self, host: str) -> bool:
        return host != self._context.identity and self.members.member(host) is None

    def _interval(self) -> float:
        """Return the seconds between two messages to a home. They grow with the members, to spare the homes."""
        count = len(self.members.live().ids)
        return max(self._context.limits.directory_heartbeat, min(count / _MESSAGES_PER_SECOND, _MAX_INTERVAL))

    async def _send(self, home: str, message: Holdings) -> Reply:
        """Send a message to a home, which may be this host itself."""
        if home == self._context.identity:
            return Reply.ACCEPTED if self.records.apply(home, message) else Reply.OUT_OF_SEQUENCE
        peer = self.members.member(home)
        if peer is None:
            return Reply.FAILED
        limits = self._context.limits
        headers = {**JSON_HEADERS, IDENTITY_HEADER: self._context.identity}
        if message.interval > KEEP_ALIVE:
            headers["Connection"] = "close"  # it would be idle for too long
        try:
            head, _ = await self._context.client.request(
                "POST",
                peer,
                HOLDINGS_PATH,
                message.encode(),
                timeout=limits.lookup_timeout,
                max_response=MAX_MESSAGE,
                headers=headers,
            )
        except PeerUnavailable:
            # It is not marked dead, because the home may just be starting.
            self._replace(home, HOLDINGS_PATH)
            return Reply.FAILED
        self.members.learn(peer, head.header(IDENTITY_HEADER))
        match head.status:
            case 204:
                self._rests.pop((home, HOLDINGS_PATH), None)
                return Reply.ACCEPTED
            case 409:
                return Reply.OUT_OF_SEQUENCE
            case 404 | 405 | 501:
                self.members.mark_old(peer)
            case 403:
                pass  # it does not know this host yet
            case _:
                self._replace(home, HOLDINGS_PATH)
        return Reply.FAILED

    def _replace(self, home: str, path: str) -> None:
        """Replace `home` by another member for a while, which grows with each failure of `path`."""
        rest = self._rests.setdefault((home, path), Backoff(_REST_MIN, _REST_MAX, jitter=0.25))
        self._replaced[home] = asyncio.get_running_loop().time() + rest.next_delay()
        self._health.changes.notify()

    async def _ask_homes(self, homes: Collection[str], key: Key) -> list[HoldersAnswer]:
        """Return the answers that the homes of `key` send in time. Stop waiting when an answer has a holder.

        A request that takes longer goes on in the background, which shows whether the home is dead.
        """
        answers: list[HoldersAnswer] = []
        requests: dict[asyncio.Task[HoldersAnswer | None], str] = {}
        useful = [home for home in homes if home not in self._useless]
        for home in [home for home in useful if home not in self._slow] or useful:
            if home == self._context.identity:
                answers.append(self.records.find(str(key)))
            elif (peer := self.members.live().by_id.get(home)) is not None:
                requests[self._tasks.start(self._ask_home(home, peer, key))] = home
        waiting = set(requests)
        while waiting and not any(self.members.live().ids & _complete_holders(each) for each in answers):
            try:
                async with Deadline(_SECOND_ANSWER if answers else _FIRST_ANSWER):
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            except TimeoutError:
                until = asyncio.get_running_loop().time() + _SLOW_TIME
                self._slow.update((requests[each], until) for each in waiting)
                break
            answered = (each for each in done if not each.cancelled() and each.exception() is None)
            answers += [answer for each in answered if (answer := each.result()) is not None]
        return answers

    def _lists_of(self, home: str) -> OrderedDict[str, frozenset[str]]:
        """Return the lists of hosts that `home` has sent, by their versions."""
        return self._hosts.setdefault(home, OrderedDict())

    async def _ask_home(self, home: str, peer: Peer, key: Key) -> HoldersAnswer | None:
        """Return the answer of a home; None if there is none, or if it is wrong."""
        query = HoldersQuery(str(key), tuple(self._lists_of(home)))
        timeout = self._context.limits.lookup_timeout
        try:
            head, body = await self._context.client.request(
                "POST",
                peer,
                HOLDERS_PATH,
                query.encode(),
                timeout=timeout,
                max_response=MAX_MESSAGE,
                headers=JSON_HEADERS,
            )
        except PeerUnavailable as error:
            self._replace(home, HOLDERS_PATH)
            if error.reason in {FailureReason.UNREACHABLE, FailureReason.SILENT}:
                self._health.exclude_until_alive(key, [peer.id])
            return None
        self.members.learn(peer, head.header(IDENTITY_HEADER))
        answer = self._read_answer(home, head, body)
        if answer is None:
            self._replace(home, HOLDERS_PATH)
        else:
            self._rests.pop((home, HOLDERS_PATH), None)
        return answer

    def _read_answer(self, home: str, head: ResponseHead, body: bytes) -> HoldersAnswer | None:
        """Return the answer in a response, always with its hosts; None if it is wrong."""
        if head.status != 200 or head.header(IDENTITY_HEADER) != home:
            return None
        try:
            answer = HoldersAnswer.parse(body)
        except ValueError as error:
            self._context.log.debug("the home %s sent a wrong answer: %s", home, error)
            return None
        lists = self._lists_of(home)
        hosts = lists.get(answer.version) if answer.hosts is None else answer.hosts
        if hosts is None:
            return None
        lists[answer.version] = hosts
        lists.move_to_end(answer.version)
        if len(lists) > _VERSIONS:
            lists.popitem(last=False)
        return HoldersAnswer(answer.holders, answer.version, hosts)


def _complete_holders(answer: HoldersAnswer) -> set[str]:
    """Return the ids of the holders of the whole content."""
    return {each.id for each in answer.holders if each.available is None}
