"""Asks the homes of a key where this host gets it: the first one, and the second one if that fails or is slow.

While the first home is only slow, the second one is not believed that this host should go upstream: if hosts followed
different homes, each home would send another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from peili.mirror.errors import FailureReason
from peili.mirror.membership.directory.home_client import FIRST_ANSWER, HomeClient
from peili.mirror.membership.directory.leases import Leases
from peili.mirror.peer_api.directory import KnownHolder
from peili.mirror.peer_api.leases import MAX_FAILED, ClaimRequest, FeedFrom, Granted, OtherHome, WaitFor
from peili.mirror.peer_api.peers import Holder
from peili.mirror.plugins.acquiring import Want
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.tasks import Tasks

_MAX_UNUSABLE = 2
"""How often a home is asked again if this host knows none of the holders that it named."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer that a home gave in time.

    Attributes:
        home: The id of the home.
        granted: Its answer.
        holders: The holders in it that this host can use. With `FeedFrom`, there is at least one.
    """

    home: str
    granted: Granted
    holders: tuple[Holder, ...]


@dataclass(frozen=True, slots=True)
class Asking:
    """Homes that are being asked.

    Attributes:
        home: The id of the home that is asked first.
        answer: The answer of the home that answers first; None if none of them does.
    """

    home: str
    answer: asyncio.Task[Claimed | None]


class Claiming:
    """Asks homes for grants. For use on one loop.

    Args:
        tasks: Owns the tasks that ask. A question that takes too long goes on, and its grant is undone.
        client: Asks homes.
        leases: Undoes grants that are not used, and knows how fast this host receives from upstream.
        homes_of: Returns the homes of a key, the first one first.
    """

    def __init__(
        self, tasks: Tasks, client: HomeClient, leases: Leases, homes_of: Callable[[str], Sequence[str]]
    ) -> None:
        self._tasks = tasks
        self._client = client
        self._leases = leases
        self._homes_of = homes_of
        self._asking: dict[str, Asking] = {}  # by key, the newest question

    def under_way(self, key: str) -> Asking | None:
        """Return the question about `key` that was asked last, unless it was finished."""
        return self._asking.get(key)

    def ask(self, want: Want) -> Asking | None:
        """Begin to ask where this host gets `want`. None if there is no home to ask.

        The caller calls `finish`.
        """
        key = str(want.key)
        homes = self._homes_of(key)
        usable = [home for home in homes if self._client.has_leases(home)]
        if not usable:
            return None
        asking = Asking(usable[0], self._tasks.start(self._ask_homes(want, usable, homes[0])))
        self._asking[key] = asking
        return asking

    def finish(self, key: str, asking: Asking, *, is_granted: bool) -> None:
        """End a question of `ask`. Unless `is_granted`, what a home grants, or has granted, is undone."""
        if self._asking.get(key) is asking:
            del self._asking[key]
        if not is_granted:
            self._abandon(key, asking.answer)

    def _abandon(self, key: str, answer: asyncio.Task[Claimed | None]) -> None:

        def undo(answered: asyncio.Task[Claimed | None]) -> None:
            claimed = None if answered.cancelled() or answered.exception() is not None else answered.result()
            if claimed is not None:
                self._undo(key, claimed.home, claimed.granted)

        if answer.done():
            undo(answer)
        else:
            answer.add_done_callback(undo)

    async def _ask_homes(self, want: Want, homes: Sequence[str], first: str) -> Claimed | None:
        """Ask the first home, and the second one as well if it is slow or does not answer."""
        request = self._request(want)

        def ask(home: str) -> asyncio.Task[Claimed | None]:
            return self._tasks.start(self._ask_home(home, request, is_first=home == first))

        questions = [ask(homes[0])]
        with suppress(TimeoutError):
            async with Deadline(FIRST_ANSWER):
                await asyncio.shield(questions[0])
        if not questions[0].done() or questions[0].result() is None:
            questions += map(ask, homes[1:])
        chosen = _choose(questions)
        while chosen is None and (waiting := [each for each in questions if not each.done()]):
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            chosen = _choose(questions)
        for each in questions:
            if each is not chosen:
                self._abandon(request.key, each)
        return None if chosen is None else chosen.result()

    def _request(self, want: Want) -> ClaimRequest:
        id_of = self._client.members.id_of
        failed = {host: reason for name, reason in want.failed.items() if (host := id_of(name)) is not None}
        return ClaimRequest(
            host=self._client.identity,
            key=str(want.key),
            offset=want.offset,
            size=want.size,
            can_share=want.can_share,
            failed=_newest(failed),
            upstream_rate=self._leases.upstream.best_rate(),
            follows=want.follows,
        )

    async def _ask_home(self, home: str, request: ClaimRequest, *, is_first: bool) -> Claimed | None:
        """Ask a home, or the one that it names instead, until it names a holder that this host knows."""
        answer = await self._answer(home, request, is_final=not is_first)
        if isinstance(answer, OtherHome):
            home = answer.id if self._can_ask(answer.id) else home
            answer = await self._answer(home, request, is_final=True)
        for _ in range(_MAX_UNUSABLE + 1):
            if not isinstance(answer, Granted):
                return None
            if not isinstance(answer.grant, FeedFrom):
                return Claimed(home, answer, ())
            holders = self._usable(answer.grant.holders, request.failed)
            if holders:
                return Claimed(home, answer, holders)
            unusable = {each.id: self._problem(each.id) for each in answer.grant.holders}
            request = replace(request, failed=_newest({**unusable, **request.failed}))
            answer = await self._answer(home, request, is_final=True)
        self._undo(request.key, home, answer)
        return None

    def _can_ask(self, home: str) -> bool:
        """Return whether this host can ask `home`, which another home has named. Its own homes may be others."""
        is_live = home == self._client.identity or home in self._client.members.live().ids
        return is_live and home not in self._client.replaced and self._client.has_leases(home)

    def _usable(self, holders: Sequence[KnownHolder], failed: Mapping[str, str]) -> tuple[Holder, ...]:
        """Return the holders that this host knows. Their sizes are left out, as in `Directory.find`."""
        live = self._client.members.live().by_id
        return tuple(
            Holder(live[each.id], complete=each.available is None, available=each.available)
            for each in holders
            if each.id in live and each.id not in failed
        )

    def _problem(self, host: str) -> str:
        """Return why a holder can't be used: this host does not know it, or counts it as dead."""
        is_known = self._client.members.member(host) is not None
        return FailureReason.UNREACHABLE if is_known else FailureReason.REFUSED

    async def _answer(self, home: str, request: ClaimRequest, *, is_final: bool) -> Granted | OtherHome | None:
        """Return the answer of a home; None if there is none in time. A grant that may come too late is undone."""
        with self._leases.asking(request.key):
            undo = partial(self._leases.undo, request.key, home)
            return await self._client.acquire(home, request, is_final=is_final, on_lost=undo)

    def _undo(self, key: str, home: str, answer: Granted | OtherHome | None) -> None:
        if isinstance(answer, Granted) and not isinstance(answer.grant, WaitFor):
            self._leases.undo(key, home)


def _choose(questions: Sequence[asyncio.Task[Claimed | None]]) -> asyncio.Task[Claimed | None] | None:
    """Return the first question with an answer; a later one only if the answer names a holder."""
    for number, each in enumerate(questions):
        claimed = each.result() if each.done() else None
        is_last_word = all(earlier.done() for earlier in questions[:number])
        if claimed is not None and (is_last_word or isinstance(claimed.granted.grant, FeedFrom)):
            return each
    return None


def _newest(failed: Mapping[str, str]) -> dict[str, str]:
    """Return the last items, as many as a message may have."""
    return dict(islice(failed.items(), max(0, len(failed) - MAX_FAILED), None))
