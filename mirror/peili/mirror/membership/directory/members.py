"""The members by the id with which they answer, and which of them have a directory.

All hosts have to choose the same homes, so they have to know the members by the same ids. A list of URLs has no ids, so
the members in it are asked for theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from peili.mirror.errors import PeerUnavailable
from peili.mirror.membership.peer_health import PeerHealth
from peili.mirror.peer_api.directory import HELLO_PATH
from peili.mirror.peer_api.peers import IDENTITY_HEADER, Peer, is_identity
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.tasks import Backoff, Broadcast, Tasks

_Endpoint: TypeAlias = tuple[str, tuple[str, ...]]
_OLD_TTL = 60.0
"""Seconds after which a member without a directory is asked again, because it may have been updated."""
_NOT_FOUND = frozenset({404, 405, 501})


@dataclass(frozen=True, slots=True)
class LiveMembers:
    """The members that are alive.

    Attributes:
        by_id: The members that take part in the directory, by their id.
        ids: The keys of `by_id`.
        others: All other members: their id is not known or not unique, or they have no directory.
    """

    by_id: Mapping[str, Peer]
    ids: frozenset[str]
    others: tuple[Peer, ...]


class MemberIds:
    """Knows the ids of the members, and asks for those that it does not know. For use on one loop.

    The id in the membership is taken for the id of the peer, unless it is a URL or the peer answers with another one.
    An id that two members share identifies neither. But an id with which a member has answered counts more than one
    that was only announced, so that a host that does not answer can't take the id of another one.

    Args:
        context: The router's context.
        health: The members. It is notified of each id that is learned.
        tasks: Owns the tasks that ask members.
    """

    def __init__(self, context: Context, health: PeerHealth, tasks: Tasks) -> None:
        self._context = context
        self._health = health
        self._tasks = tasks
        self._learned: dict[_Endpoint, str] = {}
        self._old: dict[_Endpoint, float] = {}  # members without a directory, and until when that counts
        self._asking: set[_Endpoint] = set()
        self._slots = asyncio.Semaphore(context.limits.lookup_fanout)
        self._ask_now = Broadcast()
        self._live: LiveMembers | None = None
        self._all: dict[str, Peer] | None = None
        self._ids: dict[str, str] | None = None  # by name, the opposite of `_all`
        self._version = -1  # of `health`, when these were computed
        self._asked_version = -1  # the same, of the last `ask_unknown`

    def live(self) -> LiveMembers:
        """Return the members that are alive."""
        self._drop_outdated()
        if self._live is None:
            by_id, others = self._by_id(self._health.live_peers())
            self._live = LiveMembers(by_id, frozenset(by_id), tuple(others))
        return self._live

    def member(self, identity: str) -> Peer | None:
        """Return the member with this id, alive or not."""
        self._drop_outdated()
        if self._all is None:
            self._all, _ = self._by_id(self._health.members())
        return self._all.get(identity)

    def id_of(self, name: str) -> str | None:
        """Return the id of the member that this host calls `name`; None if its id is not known."""
        self._drop_outdated()
        if self._ids is None:
            by_id, _ = self._by_id(self._health.members())
            self._ids = {peer.id: identity for identity, peer in by_id.items()}
        return self._ids.get(name)

    def zone_of(self, identity: str) -> str | None:
        """Return the zone of a host, which may be this one: the label ``zone``. None if it is not known."""
        own = identity == self._context.identity
        peer = self._health.this_host if own else self.member(identity)
        return None if peer is None else peer.labels.get("zone")

    def learn(self, peer: Peer, identity: str | None) -> None:
        """Note the id with which `peer` answered."""
        if identity is None or not is_identity(identity) or self._health.detect_this_host(peer, identity):
            return
        if self._learned.get(_endpoint(peer)) != identity:
            self._learned[_endpoint(peer)] = identity
            self._health.report_change()

    def mark_old(self, peer: Peer) -> None:
        """Note that `peer` has no directory."""
        self._old[_endpoint(peer)] = asyncio.get_running_loop().time() + _OLD_TTL
        self._health.report_change()

    def ask_unknown(self) -> None:
        """Ask the live members whose id is not known, in the background. Call it at each change and at intervals."""
        now = asyncio.get_running_loop().time()
        if self._asked_version == self._health.version and all(until > now for until in self._old.values()):
            return
        self._asked_version = self._health.version
        members = {_endpoint(peer) for peer in self._health.members()}
        self._learned = {each: name for each, name in self._learned.items() if each in members}
        expired = [each for each, until in self._old.items() if each not in members or until <= now]
        for each in expired:
            del self._old[each]
        if expired:
            self._health.report_change()
        for peer in self._health.live_peers():
            endpoint = _endpoint(peer)
            if endpoint not in self._asking and self._is_unknown(peer):
                self._asking.add(endpoint)
                self._tasks.start(self._ask_until_known(peer)).add_done_callback(
                    lambda _, endpoint=endpoint: self._asking.discard(endpoint)  # type: ignore[misc]  # bound early
                )

    def ask_now(self) -> None:
        """Ask the live members that have not told their id yet again now: one of them has just spoken."""
        self._ask_now.notify()

    def _is_unknown(self, peer: Peer) -> bool:
        return self._id_of(peer) is None and _endpoint(peer) not in self._old

    def _id_of(self, peer: Peer) -> str | None:
        learned = self._learned.get(_endpoint(peer))
        if learned is not None:
            return learned
        return peer.id if is_identity(peer.id) and peer.id not in peer.urls and "://" not in peer.id else None

    def _by_id(self, peers: list[Peer]) -> tuple[dict[str, Peer], list[Peer]]:
        by_id: dict[str, Peer] = {}
        others: list[Peer] = []
        ambiguous: set[str] = set()
        answered = {each for peer in peers if (each := self._learned.get(_endpoint(peer))) is not None}
        for peer in peers:
            identity = self._id_of(peer)
            is_contested = identity in answered and _endpoint(peer) not in self._learned
            if identity is None or is_contested or _endpoint(peer) in self._old or identity == self._context.identity:
                others.append(peer)
            elif identity in by_id or identity in ambiguous:
                ambiguous.add(identity)
                others.append(peer)
            else:
                by_id[identity] = peer
        others.extend(by_id.pop(identity) for identity in ambiguous)
        return by_id, others

    def _drop_outdated(self) -> None:
        if self._version != self._health.version:
            self._version = self._health.version
            self._live = self._all = self._ids = None

    async def _ask_until_known(self, peer: Peer) -> None:
        limits = self._context.limits
        backoff = Backoff(limits.backoff_min, limits.backoff_max, jitter=0.25)
        while self._health.is_usable(peer) and self._is_unknown(peer):
            retry_now = self._ask_now.next_change  # taken before the question, which may come just too early
            async with self._slots:
                await self._ask(peer)
            if self._is_unknown(peer):
                await backoff.sleep_unless(retry_now)

    async def _ask(self, peer: Peer) -> None:
        """Ask `peer` for its id. A failure does not mark it dead; only a lookup does."""
        try:
            answer = await self._context.client.head(peer, HELLO_PATH, timeout=self._context.limits.lookup_timeout)
        except PeerUnavailable:
            return
        identity = answer.header(IDENTITY_HEADER)
        if answer.status in _NOT_FOUND or (answer.status == 200 and identity is None):
            self.mark_old(peer)
        self.learn(peer, identity)


def _endpoint(peer: Peer) -> _Endpoint:
    return peer.id, peer.urls
