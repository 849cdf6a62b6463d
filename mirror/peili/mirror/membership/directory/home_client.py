"""Sends the messages of this host to homes, and knows which homes are left out because they failed."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import TypeVar

from peili.mirror.client.connection import ResponseHead
from peili.mirror.client.pool import KEEP_ALIVE
from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.membership.directory.home import Home
from peili.mirror.membership.directory.members import MemberIds
from peili.mirror.membership.directory.publisher import Reply
from peili.mirror.membership.peer_health import PeerHealth
from peili.mirror.oci.references import Key
from peili.mirror.peer_api.directory import HOLDERS_PATH, HOLDINGS_PATH, HoldersAnswer, HoldersQuery, Holdings
from peili.mirror.peer_api.leases import (
    ACQUIRE_PATH,
    LEASES_PATH,
    AcquireQuery,
    ClaimRequest,
    Granted,
    LeaseReports,
    LeasesAnswer,
    OtherHome,
    parse_acquire_answer,
)
from peili.mirror.peer_api.messages import JSON_HEADERS, MAX_MESSAGE
from peili.mirror.peer_api.peers import IDENTITY_HEADER, Peer
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.newest import put_newest
from peili.mirror.support.shared_sets import SharedSets
from peili.mirror.support.tasks import Backoff

_T = TypeVar("_T")

_REST_MIN, _REST_MAX = 1.0, 60.0
"""Seconds for which a home that was busy, unreachable or wrong is replaced: the first time, and at most."""
_OLD_TIME, _UNKNOWN_TIME = 60.0, 1.0
"""Seconds for which a home is not asked where to get a key: if it is too old; if it does not know this host yet."""
FIRST_ANSWER = 0.25
"""Seconds to wait for the first answer of a home."""
_SLOW_TIME = 2.0
"""Seconds for which a home that did not answer in time is asked only if the other home is slow, too."""
_VERSIONS = 4
"""How many lists of hosts are remembered for each home."""
_NOT_FOUND = frozenset({404, 405, 501})


class HomeClient:
    """Asks homes, and reports to them. For use on one loop.

    A home that cannot be reached, is busy or sends something wrong is `replaced` for a while, which grows with each
    failure. No method raises.

    Args:
        context: The router's context.
        health: Learns which homes do not answer.
        members: The members by their ids.
        home: This host as a home, which needs no request.

    Attributes:
        replaced: The homes that are no homes now, and until when.
        identity: The id of this host.
        members: As above.
        answer_time: Seconds to wait for the answer of a home: ``limits.lookup_timeout``.
    """

    def __init__(self, context: Context, health: PeerHealth, members: MemberIds, home: Home) -> None:
        self.replaced: dict[str, float] = {}
        self.identity = context.identity
        self.answer_time = context.limits.lookup_timeout
        self._context = context
        self._health = health
        self.members = members
        self._home = home
        self._rests: dict[tuple[str, str], Backoff] = {}  # by home and by what failed
        self._hosts: dict[str, OrderedDict[str, frozenset[str]]] = {}  # by home and version; see `HoldersAnswer`
        self._sets = SharedSets()  # with 10,000 members, the lists of 64 homes would take 80 MiB; most are equal
        self._slow: dict[str, float] = {}  # homes that answered late, until when that counts
        self._without_leases: dict[str, float] = {}  # homes, until when that counts

    def keep(self, homes: Collection[str]) -> None:
        """Forget what homes that are not in `homes` have sent."""
        self._hosts = {home: hosts for home, hosts in self._hosts.items() if home in homes}
        self._rests = {home: rest for home, rest in self._rests.items() if self.members.member(home[0]) is not None}

    def expire(self) -> None:
        """Forget failures that no longer count. Call it about every second."""
        now = asyncio.get_running_loop().time()
        for table in (self.replaced, self._slow, self._without_leases):
            for home in [home for home, until in table.items() if until <= now]:
                del table[home]

    def restore(self, home: str) -> None:
        """Note that `home` has just started, or just learned of this host: earlier failures say nothing any more."""
        self._without_leases.pop(home, None)
        if self.replaced.pop(home, None) is not None:
            self._health.changes.notify()

    def mark_slow(self, home: str) -> None:
        """Note that `home` did not answer in time."""
        self._slow[home] = asyncio.get_running_loop().time() + _SLOW_TIME

    def is_slow(self, home: str) -> bool:
        """Return whether `home` did not answer in time lately."""
        return home in self._slow

    def has_leases(self, home: str) -> bool:
        """Return whether `home` can be asked where to get a key, as far as is known. An old version can't."""
        return home not in self._without_leases

    async def send_holdings(self, home: str, message: Holdings) -> Reply:
        """Report keys of this host. A home that fails is not marked dead, because it may just be starting."""
        if home == self.identity:
            return Reply.ACCEPTED if self._home.take(home, message) else Reply.OUT_OF_SEQUENCE
        peer = self.members.member(home)
        if peer is None:
            return Reply.FAILED
        headers = {"Connection": "close"} if message.interval > KEEP_ALIVE else {}  # it would be idle for too long
        try:
            head, _ = await self._post(peer, HOLDINGS_PATH, message.encode(), headers)
        except PeerUnavailable:
            self._replace(home, HOLDINGS_PATH)
            return Reply.FAILED
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

    async def find(self, home: str, key: Key) -> HoldersAnswer | None:
        """Ask who has a key. Returns the answer, always with its hosts; None if there is none, or if it is wrong."""
        if home == self.identity:
            return self._home.records.find(str(key))
        query = HoldersQuery(str(key), tuple(self._lists_of(home)))
        answer = await self._ask(home, HOLDERS_PATH, query.encode(), HoldersAnswer.parse)
        return None if answer is None else self._with_hosts(home, HOLDERS_PATH, answer)

    async def acquire(
        self, home: str, request: ClaimRequest, *, is_final: bool, on_lost: Callable[[], None] = lambda: None
    ) -> Granted | OtherHome | None:
        """Ask where this host gets a key.

        Returns:
            The answer; None if there is none, or if it is wrong. If the answer may only be lost, `on_lost` is called:
            the home may have granted something.
        """
        if home == self.identity:
            return self._home.acquire(AcquireQuery(request, is_final=is_final))
        query = AcquireQuery(request, tuple(self._lists_of(home)), is_final)
        answer = await self._ask(home, ACQUIRE_PATH, query.encode(), parse_acquire_answer, on_lost=on_lost)
        if not isinstance(answer, Granted):
            return answer
        known = self._with_hosts(home, ACQUIRE_PATH, answer.known)
        return None if known is None else Granted(answer.grant, known, answer.interval)

    async def report(self, home: str, message: LeaseReports) -> LeasesAnswer | None:
        """Report what became of the answers of a home. None if it did not take the report."""
        if home == self.identity:
            return self._home.report(home, message)
        return await self._ask(home, LEASES_PATH, message.encode(), LeasesAnswer.parse)

    async def _ask(
        self,
        home: str,
        path: str,
        body: bytes,
        parse: Callable[[bytes], _T],
        *,
        on_lost: Callable[[], None] = lambda: None,
    ) -> _T | None:
        """Return the answer of a home; None if there is none, or if it is wrong."""
        peer = self.members.live().by_id.get(home)
        if peer is None:
            return None
        try:
            head, answer = await self._post(peer, path, body)
        except PeerUnavailable as error:
            self._replace(home, path)
            if error.reason != FailureReason.UNREACHABLE:
                on_lost()
            if path != LEASES_PATH and error.reason in {FailureReason.UNREACHABLE, FailureReason.SILENT}:
                self._health.mark_dead(peer, str(error), probe_now=True)
            return None
        if path != HOLDERS_PATH and head.status in {403, *_NOT_FOUND}:
            seconds = _UNKNOWN_TIME if head.status == 403 else _OLD_TIME
            self._without_leases[home] = asyncio.get_running_loop().time() + seconds
            return None
        if head.status == 200 and head.header(IDENTITY_HEADER) == home:
            try:
                parsed = parse(answer)
            except ValueError as error:
                self._context.log.debug("the home %s sent a wrong answer: %s", home, error)
            else:
                self._rests.pop((home, path), None)
                return parsed
        self._replace(home, path)
        return None

    async def _post(
        self, peer: Peer, path: str, body: bytes, headers: dict[str, str] | None = None
    ) -> tuple[ResponseHead, bytes]:
        """Send a message to a member, and return its answer. Raises PeerUnavailable."""
        try:
            head, answer = await self._context.client.request(
                "POST",
                peer,
                path,
                body,
                timeout=self.answer_time,
                max_response=MAX_MESSAGE,
                headers={**JSON_HEADERS, IDENTITY_HEADER: self.identity, **(headers or {})},
            )
        except PeerUnavailable:
            raise
        except Exception as error:  # the task that reports to this home would end
            self._context.log.exception("asking the home %s failed, which is a bug", peer.id)
            raise PeerUnavailable(f"peer {peer.id} can't be asked: {error!r}", FailureReason.BROKEN) from error
        self.members.learn(peer, head.header(IDENTITY_HEADER))
        return head, answer

    def _replace(self, home: str, path: str) -> None:
        """Replace `home` by another member for a while, which grows with each failure of `path`."""
        rest = self._rests.setdefault((home, path), Backoff(_REST_MIN, _REST_MAX, jitter=0.25))
        self.replaced[home] = asyncio.get_running_loop().time() + rest.next_delay()
        self._health.changes.notify()

    def _lists_of(self, home: str) -> OrderedDict[str, frozenset[str]]:
        """Return the lists of hosts that `home` has sent, by their versions."""
        return self._hosts.setdefault(home, OrderedDict())

    def _with_hosts(self, home: str, path: str, answer: HoldersAnswer) -> HoldersAnswer | None:
        """Return the answer with its hosts; None if it names a version that this host does not know."""
        lists = self._lists_of(home)
        hosts = lists.get(answer.version) if answer.hosts is None else self._sets.share(answer.hosts)
        if hosts is None:
            self._replace(home, path)
            return None
        put_newest(lists, answer.version, hosts, _VERSIONS)
        return HoldersAnswer(answer.holders, answer.version, hosts)
