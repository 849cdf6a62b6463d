"""Knows the members: which of them are alive, and which of them is this host itself."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeAlias

from peili.mirror.errors import PeerUnavailable
from peili.mirror.oci.references import Key
from peili.mirror.peer_api.peers import IDENTITY_HEADER, Peer, UnreachablePeer
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.newest import put_newest
from peili.mirror.support.tasks import Backoff, Broadcast, Tasks

_Endpoint: TypeAlias = tuple[str, tuple[str, ...], str | None]
"""A member's id, URLs and TLS name. Members that differ in one of these are different members."""
_MOST_LINES = 64
"""How many peers that come or go at the same time have a line in the log each."""
_MAX_PROBES = 16
"""How many dead peers are probed at the same time."""


class PeerHealth:
    """The members, and whether each of them is alive.

    A peer that does not answer is dead at once, so that it costs its timeout only once. A background task probes each
    dead peer, with growing delays, until the peer answers. A member that is new, or that has new URLs, counts as alive.

    A host chooses its id itself, so an id proves nothing. If two members have the same id, both are kept, and the
    second gets another name. The peers that this class returns have their name as `id`. If a member answers with the id
    of another member, a warning is logged, and the member stays. Only a member that answers with this host's id is
    taken for this host.

    For use on one loop.

    Args:
        context: The router's context.
        tasks: Owns the tasks that probe dead peers.

    Attributes:
        revision: Grows whenever a peer may have become available. A miss from an earlier revision is out of date.
        is_known: Whether the members were reported at least once.
        version: Grows whenever what is known of the members changes.
        changes: Notified of each of these changes.
        this_host: The member that is this host itself, if it is in the membership.
    """

    def __init__(self, context: Context, tasks: Tasks) -> None:
        self.revision = 0
        self.is_known = False
        self.version = 0
        self.changes = Broadcast()
        self.this_host: Peer | None = None
        self._context = context
        self._tasks = tasks
        self._members: dict[str, Peer] = {}  # by name, which is the id if no other member has it
        self._names: dict[_Endpoint, str] = {}
        self._own_names: set[str] = set()  # members that turned out to be this host
        self._refusing: set[str] = set()  # members whose 403 was logged
        self._impostors: set[str] = set()  # members whose use of another member's id was logged
        self._dead: dict[str, _DeadPeer] = {}  # by name
        self._last_seen: dict[str, float] = {}  # by name, in seconds since 1970
        self._handled_failures: OrderedDict[tuple[Key, str], float] = OrderedDict()  # expiry times, earliest first
        self._probes = asyncio.Semaphore(_MAX_PROBES)

    def update(self, peers: Iterable[Peer]) -> None:
        """Replace the members with `peers`."""
        self.is_known = True
        members = self._assign_names(peers)
        if members == self._members:
            return
        before, self._members = self._members, members
        self._log_changes(before)
        self._own_names.clear()
        self._refusing.clear()
        self._impostors.clear()
        for name in [name for name in self._dead if not _is_same_endpoint(before.get(name), members.get(name))]:
            self._dead.pop(name).probing.cancel()
        self._last_seen = {name: seen for name, seen in self._last_seen.items() if name in members}
        if not all(_is_same_endpoint(before.get(name), peer) for name, peer in members.items()):
            self.revision += 1
        self.report_change()

    def _log_changes(self, before: Mapping[str, Peer]) -> None:
        """Log a line for each peer that came or went. Of very many at once, only the number is logged."""
        log, members = self._context.log, self._members
        for word, names, peers in (
            ("joined", members.keys() - before.keys(), members),
            ("left", before.keys() - members.keys(), before),
        ):
            if len(names) > _MOST_LINES:
                log.info("%d peers %s", len(names), word, extra={"event": f"peers {word}", "count": len(names)})
                continue
            for name in sorted(names):
                extra = {"event": f"peer {word}", "peer": name}
                log.info("peer %s %s: %s", name, word, ", ".join(peers[name].urls) or "no URL", extra=extra)

    def report_change(self) -> None:
        """Notify `changes`. Also for those who know more of the members, such as their ids."""
        self.version += 1
        self.changes.notify()

    def _assign_names(self, peers: Iterable[Peer]) -> dict[str, Peer]:
        """Return the members except this host by name. A member keeps its name until it is no longer a member."""
        endpoints: dict[_Endpoint, Peer] = {}
        for peer in peers:
            if peer.id == self._context.identity:
                self.this_host = peer
            else:
                endpoints.setdefault((peer.id, peer.urls, peer.tls_name), peer)
        self._names = {each: self._names[each] for each in endpoints if each in self._names}
        taken = set(self._names.values())
        for endpoint, peer in endpoints.items():
            if endpoint in self._names:
                continue
            name = next(each for each in _possible_names(peer) if each not in taken)
            taken.add(name)
            self._names[endpoint] = name
            if name != peer.id:
                self._context.log.warning("two members are called %s; one of them is now %s", peer.id, name)
        named = ((self._names[endpoint], peer) for endpoint, peer in endpoints.items())
        return {name: peer if name == peer.id else replace(peer, id=name) for name, peer in named}

    def members(self) -> list[Peer]:
        """Return all members, alive or not, without this host."""
        return [peer for name, peer in self._members.items() if name not in self._own_names]

    def live_peers(self) -> list[Peer]:
        """Return the members that are alive, without this host."""
        return [peer for name, peer in self._members.items() if name not in self._dead and name not in self._own_names]

    def dead_peers(self) -> list[UnreachablePeer]:
        """Return the members that do not answer."""
        dead = ((name, each) for name, each in self._dead.items() if name in self._members)
        return [
            UnreachablePeer(self._members[name], each.reason, each.since, self._last_seen.get(name))
            for name, each in dead
        ]

    def mark_seen(self, peer: Peer) -> None:
        """Remember that `peer` has answered now."""
        self._last_seen[peer.id] = time.time()

    def is_usable(self, peer: Peer) -> bool:
        """Return whether `peer`, which was alive before, still is a live member."""
        is_member = _is_same_endpoint(self._members.get(peer.id), peer)
        return is_member and peer.id not in self._dead and peer.id not in self._own_names

    def detect_this_host(self, peer: Peer, identity: str | None) -> bool:
        """Return whether `identity`, with which `peer` answered, is this host's id. If so, it is not asked again."""
        if identity != self._context.identity:
            return False
        if peer.id not in self._own_names:
            self._context.log.debug("member %s is this host itself", peer.id)
            self._own_names.add(peer.id)
            self.this_host = peer
            self.report_change()
        return True

    def report_impostor(self, peer: Peer, identity: str | None) -> None:
        """Log a warning, once, if `identity`, with which `peer` answered, is another member's."""
        if identity is None or identity == peer.id or identity not in self._members or peer.id in self._impostors:
            return
        self._impostors.add(peer.id)
        self._context.log.warning("peer %s answers as %s, which is another member", peer.id, identity)

    def report_refusal(self, peer: Peer) -> None:
        """Log a warning, once, that `peer` refuses this host with 403. It stays alive."""
        if peer.id not in self._refusing:
            self._refusing.add(peer.id)
            self._context.log.warning(
                "peer %s at %s answers 403: its door is closed to this host; set peer.shared_key_file or peer.tls",
                peer.id,
                peer.urls[0],
            )

    def mark_dead(self, peer: Peer, reason: str, *, probe_now: bool = False) -> None:
        """Leave `peer` out until it answers again.

        Args:
            peer: The peer.
            reason: Why; it becomes the beginning of the log line.
            probe_now: Whether it is probed at once, because it may only have been slow.
        """
        if self.is_usable(peer):
            extra = {"event": "peer lost", "peer": peer.id}
            self._context.log.info("%s; it is left out until it answers again", reason, extra=extra)
            self._exclude(peer, reason, probe_now=probe_now)

    def probe_dead(self, name: str | None = None) -> None:
        """Probe a dead member, or all of them, now: it has just spoken. Does nothing to members that are alive.

        Args:
            name: The name of the member; None for all.
        """
        for dead in self._dead.values() if name is None else filter(None, [self._dead.get(name)]):
            dead.retry_now.set()

    def exclude_until_alive(self, key: Key, names: Collection[str]) -> None:
        """Leave out the members in `names`, which failed to deliver `key`, and probe each at once.

        A caller repeats the same names with each `Want` for `key`. So each pair of key and name counts only once in
        ``limits.failure_ttl`` seconds.
        """
        now = asyncio.get_running_loop().time()
        while self._handled_failures and next(iter(self._handled_failures.values())) <= now:
            self._handled_failures.popitem(last=False)
        for name in names:
            peer = self._members.get(name)
            if peer is None or (key, name) in self._handled_failures:
                continue
            limits = self._context.limits
            put_newest(self._handled_failures, (key, name), now + limits.failure_ttl, limits.quarantine_entries)
            if self.is_usable(peer):
                self._exclude(peer, f"peer {name} did not deliver {key}", probe_now=True)

    def _exclude(self, peer: Peer, reason: str, *, probe_now: bool) -> None:
        retry_now = asyncio.Event()
        probing = self._tasks.start(self._probe_until_alive(peer, retry_now, probe_now=probe_now))
        self._dead[peer.id] = _DeadPeer(probing, retry_now, reason, time.time())
        self.report_change()

    async def _probe_until_alive(self, peer: Peer, retry_now: asyncio.Event, *, probe_now: bool) -> None:
        # With jitter, so that not all hosts probe a restarted peer at the same time.
        backoff = Backoff(self._context.limits.backoff_min, self._context.limits.backoff_max, jitter=0.25)
        if not probe_now:
            await backoff.sleep_unless(retry_now)
        while True:
            retry_now.clear()
            async with self._probes:
                if await self._is_alive(peer):
                    break
            await backoff.sleep_unless(retry_now)
        del self._dead[peer.id]
        self.revision += 1
        self.report_change()
        extra = {"event": "peer found", "peer": peer.id}
        self._context.log.info("peer %s answers again", peer.id, extra=extra)

    async def _is_alive(self, peer: Peer) -> bool:
        """Return whether peili answers at one of the peer's URLs.

        Each URL gets a full timeout, unlike in a lookup. So a peer whose first URL drops all packets is found by its
        second URL, which the client then tries first.
        """
        timeout = self._context.limits.lookup_timeout
        try:
            async with Deadline(timeout * len(peer.urls)):
                answer = await self._context.client.head(peer, "/v2/", timeout=timeout)
        except (PeerUnavailable, TimeoutError):
            return False
        except Exception:  # another probe may succeed; without one, the peer would be left out forever
            self._context.log.debug("probing peer %s failed, which is a bug", peer.id, exc_info=True)
            return False
        identity = answer.header(IDENTITY_HEADER)
        self.detect_this_host(peer, identity)
        if identity is not None:
            self.mark_seen(peer)
        return identity is not None


@dataclass(frozen=True, slots=True)
class _DeadPeer:
    """A member that does not answer.

    Attributes:
        probing: The task that probes it.
        retry_now: Set to probe it now.
        reason: Why it is dead.
        since: Since when, in seconds since 1970.
    """

    probing: asyncio.Task[None]
    retry_now: asyncio.Event
    reason: str
    since: float


def _possible_names(peer: Peer) -> Iterable[str]:
    """Return names for `peer`, without an end: its id, then its id and URL, then the same with numbers."""
    with_url = f"{peer.id} at {peer.urls[0] if peer.urls else 'no URL'}"
    yield peer.id
    yield with_url
    for number in count(2):
        yield f"{with_url} ({number})"


def _is_same_endpoint(one: Peer | None, other: Peer | None) -> bool:
    return one is not None and other is not None and (one.urls, one.tls_name) == (other.urls, other.tls_name)
