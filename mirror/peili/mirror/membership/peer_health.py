"""Who the members are, which of them is this host itself, and which do not answer."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import count
from typing import TypeAlias

from peili.mirror.client.client import IDENTITY_HEADER
from peili.mirror.errors import PeerUnavailable
from peili.mirror.oci.references import Key
from peili.mirror.peer_api.peers import Peer
from peili.mirror.plugins.plugin import Context
from peili.mirror.support.backoff import Backoff
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.tasks import Tasks

_Place: TypeAlias = tuple[str, tuple[str, ...], str | None]
"""A member's id, URLs and certified name. Two that differ in one of these are two members."""
_PROBES = 16
"""How many dead peers are tried at the same time."""


class PeerHealth:
    """The members as this host sees them.

    A peer that does not answer is dead at once, so that nobody waits for it twice. Each dead peer is tried again in
    the background, with growing pauses, and is back as soon as it answers. One that is new, or has new URLs, is
    believed to live. Used on one loop; `tasks` own the background work.

    An id is what somebody says of itself, or of another. So it takes no member's place: of two with the same id in
    different places, both are kept, and the second is called by another name; and whoever answers with another's id is
    named in the log, and asked as ever. Only who answers with this host's id is taken for this host.

    Attributes:
        news: grows whenever a peer may have appeared that could not be asked before: what nobody had until then,
            somebody may have now.
        arrived: whether the members have been told at all.
    """

    def __init__(self, context: Context, tasks: Tasks) -> None:
        self.news = 0
        self.arrived = False
        self._context = context
        self._tasks = tasks
        self._members: dict[str, Peer] = {}  # by name, which is the id where that was free
        self._names: dict[_Place, str] = {}
        self._selves: set[str] = set()  # members that turned out to be this host
        self._closed: set[str] = set()  # members whose closed door has been logged
        self._borrowers: set[str] = set()  # members whose use of another's id has been logged
        self._dead: dict[str, asyncio.Task[None]] = {}  # and what tries them again
        self._doubted: OrderedDict[tuple[Key, str], float] = OrderedDict()  # until when; the first to end first
        self._probes = asyncio.Semaphore(_PROBES)

    def update(self, peers: Iterable[Peer]) -> None:
        """These are all the members."""
        self.arrived = True
        members = self._named(peer for peer in peers if peer.id != self._context.identity)
        if members == self._members:
            return
        before, self._members = self._members, members
        self._selves.clear()
        self._closed.clear()
        self._borrowers.clear()
        for name in [name for name in self._dead if not _same_place(before.get(name), members.get(name))]:
            self._dead.pop(name).cancel()
        if not all(_same_place(before.get(name), peer) for name, peer in members.items()):
            self.news += 1

    def _named(self, peers: Iterable[Peer]) -> dict[str, Peer]:
        """The members by name, which they keep for as long as they are there."""
        places: dict[_Place, Peer] = {}
        for peer in peers:
            places.setdefault((peer.id, peer.urls, peer.tls_name), peer)
        self._names = {place: self._names[place] for place in places if place in self._names}
        taken = set(self._names.values())
        for place, peer in places.items():
            if place in self._names:
                continue
            name = next(each for each in _names(peer) if each not in taken)
            taken.add(name)
            self._names[place] = name
            if name != peer.id:
                self._context.log.warning("two members are called %s; one of them is now %s", peer.id, name)
        named = ((self._names[place], peer) for place, peer in places.items())
        return {name: peer if name == peer.id else replace(peer, id=name) for name, peer in named}

    def live(self) -> list[Peer]:
        """The members that are worth asking."""
        return [peer for name, peer in self._members.items() if name not in self._dead and name not in self._selves]

    def usable(self, peer: Peer) -> bool:
        """Whether `peer`, which once was live, still is."""
        known = _same_place(self._members.get(peer.id), peer)
        return known and peer.id not in self._dead and peer.id not in self._selves

    def recognise(self, peer: Peer, identity: str | None) -> bool:
        """Note the id that `peer` answered with; whether it is this host's own."""
        if identity != self._context.identity:
            return False
        if peer.id not in self._selves:
            self._context.log.debug("member %s is this host itself", peer.id)
            self._selves.add(peer.id)
        return True

    def answered_as(self, peer: Peer, identity: str | None) -> None:
        """`peer` answered with the id `identity`. Where that is another member's, somebody should know."""
        if identity is None or identity == peer.id or identity not in self._members or peer.id in self._borrowers:
            return
        self._borrowers.add(peer.id)
        self._context.log.warning("peer %s answers as %s, which is another member", peer.id, identity)

    def closed(self, peer: Peer) -> None:
        """`peer` answered that its door is closed to this host. It lives, but somebody should know."""
        if peer.id not in self._closed:
            self._closed.add(peer.id)
            self._context.log.warning(
                "peer %s answers 403: its door is closed to this host; do both use the same key or authority?", peer.id
            )

    def lost(self, peer: Peer, reason: str) -> None:
        """`peer` does not answer; `reason` is the line that says so."""
        if self.usable(peer):
            self._context.log.info("%s; it is left out until it answers again", reason)
            self._bury(peer, at_once=False)

    def doubt(self, key: Key, names: Collection[str]) -> None:
        """Members called `names` failed `key` elsewhere: leave each out, and find out at once whether it answers.

        Once for each of them: who asks for `key` repeats for `failure_ttl` seconds whom it was that failed it.
        """
        now = asyncio.get_running_loop().time()
        while self._doubted and next(iter(self._doubted.values())) <= now:
            self._doubted.popitem(last=False)
        for name in names:
            peer = self._members.get(name)
            if peer is None or (key, name) in self._doubted:
                continue
            self._doubted[key, name] = now + self._context.limits.failure_ttl
            if len(self._doubted) > self._context.limits.quarantine_entries:
                self._doubted.popitem(last=False)
            if self.usable(peer):
                self._bury(peer, at_once=True)

    def _bury(self, peer: Peer, *, at_once: bool) -> None:
        self._dead[peer.id] = self._tasks.start(self._revive(peer, at_once=at_once))

    async def _revive(self, peer: Peer, *, at_once: bool) -> None:
        limits = self._context.limits
        backoff = Backoff(limits.backoff_min, limits.backoff_max, jitter=0.25)
        if not at_once:
            await backoff.sleep()
        while True:
            async with self._probes:
                if await self._answers(peer):
                    break
            await backoff.sleep()
        del self._dead[peer.id]
        self.news += 1
        self._context.log.info("peer %s answers again", peer.id)

    async def _answers(self, peer: Peer) -> bool:
        """Whether a peili answers at one of the peer's URLs. Each gets its time, unlike when a key is asked for:
        so a peer whose first URL is a black hole is found by its next, which is then used first.
        """
        each = self._context.limits.lookup_timeout
        try:
            async with Deadline(each * len(peer.urls)):
                answer = await self._context.client.head(peer, "/v2/", timeout=each)
        except (PeerUnavailable, TimeoutError):
            return False
        except Exception:  # whatever it is, another try may go better; without one it would be left out for good
            self._context.log.debug("trying peer %s again failed, which is a bug", peer.id, exc_info=True)
            return False
        identity = answer.header(IDENTITY_HEADER)
        self.recognise(peer, identity)
        return identity is not None


def _names(peer: Peer) -> Iterable[str]:
    """What `peer` may be called, in order; there is always another one."""
    elsewhere = f"{peer.id} at {peer.urls[0] if peer.urls else 'no URL'}"
    yield peer.id
    yield elsewhere
    for number in count(2):
        yield f"{elsewhere} ({number})"


def _same_place(one: Peer | None, other: Peer | None) -> bool:
    return one is not None and other is not None and (one.urls, one.tls_name) == (other.urls, other.tls_name)
