"""Finds holders by asking the members: one flight of questions per key, its answers remembered for a moment."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Iterator

from peili.mirror.client.client import IDENTITY_HEADER
from peili.mirror.client.connection import ResponseHead
from peili.mirror.errors import PeerUnavailable
from peili.mirror.membership.peer_health import PeerHealth
from peili.mirror.oci.references import Key
from peili.mirror.peer_api.keys import key_path, read_answer
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.plugins.plugin import Context
from peili.mirror.support.broadcast import Broadcast
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.tasks import Tasks

_ENOUGH = 16
"""With so many holders of a key in hand, no further member is asked."""


class Flight:
    """One key asked of the members, shared by all who want to know. It outlives any one of them."""

    def __init__(self, key: Key, news: int, ends: float) -> None:
        self.key = key
        self.news = news  # what the roster knew when it began
        self.ends = ends  # on the loop's clock: later than this, no further member is asked
        self.holders: list[Holder] = []
        self.cut_short = False  # there were members left that have not been asked
        self.good_until: float | None = None  # on the loop's clock; None while it lasts
        self._places: set[tuple[str, ...]] = set()
        self._changes = Broadcast()

    def add(self, holder: Holder) -> None:
        """`holder` has it. Two members at the same URLs are one host; whom an answer says it is from proves nothing."""
        if holder.peer.urls not in self._places:
            self._places.add(holder.peer.urls)
            self.holders.append(holder)
            self._changes.notify()

    def land(self, good_until: float) -> None:
        """There will be no more answers."""
        self.good_until = good_until
        self._changes.notify()

    async def follow(self, usable: Callable[[Peer], bool]) -> AsyncGenerator[Holder, None]:
        """The holders so far, then those to come; without those who are no longer `usable` when it is their turn."""
        told = 0
        while True:
            changed = self._changes.next_change
            while told < len(self.holders):
                holder = self.holders[told]
                told += 1
                if usable(holder.peer):
                    yield holder
            if self.good_until is not None:
                return
            await changed.wait()


class KeyLookup:
    """Asks the live members of `roster` who has a key. Used on one loop; `tasks` own the flights."""

    def __init__(self, context: Context, roster: PeerHealth, tasks: Tasks) -> None:
        self._context = context
        self._roster = roster
        self._tasks = tasks
        self._flights: OrderedDict[Key, Flight] = OrderedDict()  # least recently used first

    def holders(self, key: Key) -> AsyncGenerator[Holder, None]:
        """The holders of `key` as they answer, or as they answered a moment ago."""
        flight = self._flights.get(key)
        if flight is None or not self._worth_joining(flight):
            flight = self._begin(key)
        self._flights.move_to_end(key)
        return flight.follow(self._roster.usable)

    def refresh(self, key: Key, failed: Collection[str]) -> None:
        """Forget who has `key` if all of them are among the `failed`: somebody new may have it by now."""
        flight = self._flights.get(key)
        if flight is None or flight.good_until is None or not flight.holders:
            return
        if all(holder.peer.id in failed for holder in flight.holders):
            del self._flights[key]

    def _worth_joining(self, flight: Flight) -> bool:
        if flight.good_until is not None and asyncio.get_running_loop().time() >= flight.good_until:
            return False
        if flight.holders:
            return flight.good_until is None or any(self._roster.usable(each.peer) for each in flight.holders)
        return flight.news == self._roster.news

    def _begin(self, key: Key) -> Flight:
        ends = asyncio.get_running_loop().time() + self._context.limits.lookup_timeout
        flight = self._flights[key] = Flight(key, self._roster.news, ends)
        if len(self._flights) > self._context.limits.lookup_keys:
            self._flights.popitem(last=False)
            self._context.limited("lookup_keys")
        # Not in `_fly` itself: a task that is cancelled before its first step runs none of its code.
        self._tasks.start(self._fly(flight)).add_done_callback(lambda _: self._land(flight))
        return flight

    async def _fly(self, flight: Flight) -> None:
        """Ask the live members, in no particular order so that not all hosts load the same one first."""
        peers = self._roster.live()
        random.shuffle(peers)
        queue = iter(peers)
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(self._context.limits.lookup_fanout, len(peers))):
                workers.create_task(self._ask_in_turn(flight, queue))

    def _land(self, flight: Flight) -> None:
        limits = self._context.limits
        missed = 0 if flight.cut_short else limits.miss_ttl
        flight.land(asyncio.get_running_loop().time() + (limits.lookup_ttl if flight.holders else missed))

    async def _ask_in_turn(self, flight: Flight, queue: Iterator[Peer]) -> None:
        """The first one is asked however late it has become: it was this host that stood still."""
        clock, asked = asyncio.get_running_loop(), False
        for peer in queue:
            if len(flight.holders) >= _ENOUGH or (asked and clock.time() >= flight.ends):
                flight.cut_short = True
                return
            await self._ask(flight, peer)
            asked = True

    async def _ask(self, flight: Flight, peer: Peer) -> None:
        """Ask `peer`. Whatever comes of that is its own matter: the others are asked in the same group of tasks."""
        patience = self._context.limits.lookup_timeout
        try:
            async with Deadline(patience):
                answer = await self._context.client.head(peer, key_path(flight.key), timeout=patience)
            self._note(flight, peer, answer)
        except PeerUnavailable as error:
            self._roster.lost(peer, str(error))
        except TimeoutError:
            self._context.limited("lookup_timeout")
            self._roster.lost(peer, f"peer {peer.id}: no answer within {patience:g} s")
        except Exception as error:
            self._context.log.exception("asking peer %s failed, which is a bug", peer.id)
            self._roster.lost(peer, f"peer {peer.id} can't be asked: {error!r}")

    def _note(self, flight: Flight, peer: Peer, answer: ResponseHead) -> None:
        """`peer` answers."""
        identity = answer.header(IDENTITY_HEADER)
        if self._roster.recognise(peer, identity):
            return
        self._roster.answered_as(peer, identity)
        if answer.status == 403:
            self._roster.closed(peer)
        holder = read_answer(peer, flight.key, answer)
        if holder is not None:
            flight.add(holder)
