"""Finds the holders of a key: by the directory, and by asking the live members that the directory does not know about.

Concurrent lookups of one key share one query. Its result is remembered for a short time.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Iterator

from peili.mirror.client.connection import ResponseHead
from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.membership.directory.directory import Directory
from peili.mirror.membership.peer_health import PeerHealth
from peili.mirror.oci.references import Key
from peili.mirror.peer_api.keys import key_path, parse_holder
from peili.mirror.peer_api.peers import IDENTITY_HEADER, Holder, Peer
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.newest import put_newest
from peili.mirror.support.tasks import Broadcast, Tasks

_ENOUGH_HOLDERS = 16
"""A query that has found this many holders asks no further member."""


class KeyQuery:
    """One round of questions about one key, shared by all its lookups. It goes on if one of them is cancelled.

    Attributes:
        path: The path of the question to a member.
        revision: `PeerHealth.revision` at the start of the query. A miss is only reused while it is unchanged, because
            a peer that becomes available may have the key.
        deadline: The time on the loop's clock after which no further member is asked.
        holders: The holders found so far.
        is_incomplete: Whether some members were not asked.
        is_from_directory: Whether the directory was asked.
        valid_until: The time on the loop's clock until which the result is used; None while the query runs.
    """

    def __init__(self, key: Key, revision: int, deadline: float) -> None:
        self.key = key
        self.path = key_path(key)
        self.revision = revision
        self.deadline = deadline
        self.holders: list[Holder] = []
        self.is_incomplete = False
        self.is_from_directory = False
        self.valid_until: float | None = None
        self._urls: set[tuple[str, ...]] = set()
        self._changes = Broadcast()

    def add(self, holder: Holder) -> None:
        """Add a holder. Members with the same URLs are one host and count once, whatever id the host claims."""
        if holder.peer.urls not in self._urls:
            self._urls.add(holder.peer.urls)
            self.holders.append(holder)
            self._changes.notify()

    def finish(self, valid_until: float) -> None:
        """End the query: no more answers follow."""
        self.valid_until = valid_until
        self._changes.notify()

    async def results(self, is_usable: Callable[[Peer], bool]) -> AsyncGenerator[Holder, None]:
        """Yield the holders found so far, then the new ones. Skips a holder that is not usable at its turn."""
        position = 0
        while True:
            changed = self._changes.next_change  # before the list is read, so that no change is missed
            while position < len(self.holders):
                holder = self.holders[position]
                position += 1
                if is_usable(holder.peer):
                    yield holder
            if self.valid_until is not None:
                return
            await changed.wait()


class KeyLookup:
    """Finds out who has a key. For use on one loop.

    The directory is asked first. Then the lookup asks the members that the directory does not know about: those that
    have started just now, or are too old to have one. These are all members while the directory is empty, and if it has
    misled the last lookup of the key.

    Args:
        context: The router's context.
        health: Knows the members, and learns here which of them do not answer.
        directory: The directory.
        tasks: Owns the tasks that run the queries.
    """

    def __init__(self, context: Context, health: PeerHealth, directory: Directory, tasks: Tasks) -> None:
        self._context = context
        self._health = health
        self._directory = directory
        self._misled: OrderedDict[Key, float] = OrderedDict()  # keys for which the directory was wrong, until this time
        self._tasks = tasks
        self._queries: OrderedDict[Key, KeyQuery] = OrderedDict()  # least recently used first

    def holders(self, key: Key) -> AsyncGenerator[Holder, None]:
        """Yield the holders of `key` as they answer, or those that a recent query found."""
        query = self._queries.get(key)
        if query is None or not self._is_reusable(query):
            query = self._start_query(key)
        self._queries.move_to_end(key)
        return query.results(self._health.is_usable)

    def forget_failed(self, key: Key, failed: Collection[str]) -> None:
        """Forget the holders of `key` if all their ids are in `failed`, so that the next lookup asks again.

        If only some of them failed, the others can still be used. A query of the members that still runs is kept: more
        of them may answer. It is not kept if the directory was asked, because then it has not asked all of them.
        """
        query = self._queries.get(key)
        if query is None or not query.holders or not all(holder.peer.id in failed for holder in query.holders):
            return
        if query.is_from_directory:
            limits = self._context.limits
            put_newest(self._misled, key, asyncio.get_running_loop().time() + limits.failure_ttl, limits.lookup_keys)
        if query.is_from_directory or query.valid_until is not None:
            del self._queries[key]

    def _is_reusable(self, query: KeyQuery) -> bool:
        if query.valid_until is not None and asyncio.get_running_loop().time() >= query.valid_until:
            return False
        if query.holders:
            return query.valid_until is None or any(self._health.is_usable(each.peer) for each in query.holders)
        return query.revision == self._health.revision

    def _start_query(self, key: Key) -> KeyQuery:
        limits = self._context.limits
        query = KeyQuery(key, self._health.revision, asyncio.get_running_loop().time() + limits.lookup_timeout)
        if put_newest(self._queries, key, query, limits.lookup_keys):
            self._context.limited("lookup_keys")
        # A callback, because a task that is cancelled before its first step runs none of its code.
        self._tasks.start(self._run(query)).add_done_callback(lambda _: self._finish(query))
        return query

    async def _run(self, query: KeyQuery) -> None:
        """Ask the directory, then members in random order, so that not all hosts load the same member first."""
        peers = self._health.live_peers()
        if peers and self._misled.get(query.key, 0) <= asyncio.get_running_loop().time():
            peers = await self._ask_directory(query, peers)
        random.shuffle(peers)
        queue = iter(peers)
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(self._context.limits.lookup_fanout, len(peers))):
                workers.create_task(self._ask_from_queue(query, queue))

    async def _ask_directory(self, query: KeyQuery, peers: list[Peer]) -> list[Peer]:
        """Ask the directory. Returns the members that have to be asked themselves: all `peers` if it fails."""
        query.is_from_directory = True
        try:
            holders, unknown = await self._directory.find(query.key)
        except Exception:  # the members can be asked all the same
            self._context.log.exception("asking the directory failed, which is a bug")
            return peers
        for holder in holders:
            query.add(holder)
        return unknown

    def _finish(self, query: KeyQuery) -> None:
        limits = self._context.limits
        seconds = limits.lookup_ttl if query.holders else limits.miss_ttl
        if query.is_incomplete and not query.holders:
            seconds = 0  # the members that were not asked may have the key
        query.finish(asyncio.get_running_loop().time() + seconds)

    async def _ask_from_queue(self, query: KeyQuery, queue: Iterator[Peer]) -> None:
        """Ask one member after another until the deadline.

        The first member is always asked. If the deadline has passed before the first question, then the event loop of
        this host was blocked, and the members are not to blame.
        """
        loop, is_first = asyncio.get_running_loop(), True
        for peer in queue:
            if not self._health.is_usable(peer):
                continue  # it did not answer as a home just now
            if len(query.holders) >= _ENOUGH_HOLDERS or (not is_first and loop.time() >= query.deadline):
                query.is_incomplete = True
                return
            await self._ask(query, peer)
            is_first = False

    async def _ask(self, query: KeyQuery, peer: Peer) -> None:
        """Ask `peer` for the key. Raises no Exception, which would cancel the other questions of the task group."""
        timeout = self._context.limits.lookup_timeout
        try:
            self._read_answer(query, peer, await self._context.client.head(peer, query.path, timeout=timeout))
        except PeerUnavailable as error:
            reason = str(error)
            if error.reason == FailureReason.SILENT:
                self._context.limited("lookup_timeout")
                reason = f"peer {peer.id}: no answer within {timeout:g} s"
            self._health.mark_dead(peer, reason)
        except Exception as error:
            self._context.log.exception("asking peer %s failed, which is a bug", peer.id)
            self._health.mark_dead(peer, f"peer {peer.id} can't be asked: {error!r}")

    def _read_answer(self, query: KeyQuery, peer: Peer, answer: ResponseHead) -> None:
        identity = answer.header(IDENTITY_HEADER)
        self._directory.members.learn(peer, identity)
        if self._health.detect_this_host(peer, identity):
            return
        self._health.mark_seen(peer)
        self._health.report_impostor(peer, identity)
        if answer.status == 403:
            self._health.report_refusal(peer)
        holder = parse_holder(peer, query.key, answer.status, answer.headers)
        if holder is not None:
            query.add(holder)
