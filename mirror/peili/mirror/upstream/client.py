"""`UpstreamClient` asks registries small questions: may this be read, and what does a tag mean there?

It decides which roots of a registry are asked, and when. root_client.py asks one root.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeAlias, TypeVar

from peili.mirror.limits import Limits
from peili.mirror.oci.requests import Endpoint
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.threads import DaemonThreads
from peili.mirror.upstream.answers import (
    Absent,
    Answer,
    Challenged,
    Denied,
    Fetched,
    Question,
    Refusal,
    Unreachable,
    not_asked,
)
from peili.mirror.upstream.api_roots import ApiRoot, RootFinder, default_roots
from peili.mirror.upstream.challenges import Challenge
from peili.mirror.upstream.exchanges import MOST_CHECKS
from peili.mirror.upstream.registries import KnownRegistries, KnownRegistry, Standing
from peili.mirror.upstream.root_client import RootClient

_T = TypeVar("_T")

_THREADS = 2

Counter: TypeAlias = Callable[[str, str], None]
"""Counts a request that was sent to a registry: its endpoint, and the kind of the answer."""


class UpstreamClient:
    """Asks registries. One per mirror, used on its loop: ``async with UpstreamClient(limits) as client``.

    Every method takes at most ``limits.upstream_timeout`` seconds, may be called concurrently, may be cancelled, and
    does not raise for errors of the network or of a registry. While the client is not entered, every registry counts as
    unreachable. Authorization headers are neither kept nor logged.

    Args:
        limits: ``upstream_timeout``, ``upstream_requests`` (to one registry at most half of them; as many again to
            registries that nobody has configured, and to those of them that have never answered),
            ``upstream_answer`` and ``connect_timeout``.
        roots: Finds the API of a registry. It runs in a thread. Its errors make the registry unreachable.
        log: Receives what goes wrong in `roots`, and why registries that are configured can't be asked.
        count: Counts each request.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        roots: RootFinder = default_roots,
        log: logging.Logger | None = None,
        count: Counter = lambda endpoint, answer: None,
    ) -> None:
        self._limits = limits or Limits()
        self._count = count
        self._threads = DaemonThreads(_THREADS, "peili upstream")
        log = log or logging.getLogger("peili.upstream")
        self._root_client = RootClient(self._limits, self._threads, log)
        # One registry leaves slots to the others, however slowly it answers.
        most_of_one = (self._limits.upstream_requests + 1) // 2
        self._registries = KnownRegistries(roots, self._threads, log, most_of_one)
        # Anybody can name registries that hang. They take no slot of those that the operator has configured.
        self._slots: Mapping[Standing, asyncio.Semaphore] | None = None  # while the client is entered
        self._checks = _new_checks()

    async def __aenter__(self) -> Self:
        self._registries.clear()
        self._slots = {each: asyncio.Semaphore(self._limits.upstream_requests) for each in Standing}
        self._checks = _new_checks()
        self._root_client.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._slots = None
        await self._root_client.aclose()

    async def ask(self, question: Question) -> Answer:
        """Ask for a manifest or a blob by HEAD, with the rights of the question's Authorization header.

        If the registry has several roots, they are asked one after the other until one has it, as a runtime does. The
        Authorization header is sent only to the root that challenged.

        Args:
            question: The endpoint is `Endpoint.MANIFEST` or `Endpoint.BLOB`.
        """
        return await self._bounded(question.registry, self._try_roots(question, self._root_client.ask))

    async def challenge(self, registry: str) -> Challenge | Unreachable | None:
        """Return how a registry challenges requests without rights; None if it does not.

        It is asked by ``GET /v2/`` at most once in ten minutes, also if many tasks need it. If it does not answer then,
        what it said last still counts.
        """
        known = self._registries.get(registry)
        await self._find_roots(registry)  # what was learnt from a root that is gone is then forgotten
        if known.is_fresh(math.inf):
            return known.challenge
        asked = await self._bounded(registry, self._learn_challenge(registry, known, math.inf))
        return asked if not known.has_answered else known.challenge

    async def probe(self, registry: str, within: float) -> Challenge | Unreachable | None:
        """Return how a registry challenges, as `challenge` does, if it also has answered lately.

        Args:
            registry: The registry.
            within: If it has not answered anything for this many seconds, it is asked.

        Returns:
            The challenge; None if it does not challenge; `Unreachable` if it does not answer now.
        """
        known = self._registries.get(registry)
        await self._find_roots(registry)  # what was learnt from a root that is gone is then forgotten
        if known.is_fresh(within):
            return known.challenge
        return await self._bounded(registry, self._learn_challenge(registry, known, within))

    async def check(self, registry: str, *, is_for_rights: bool = False) -> Unreachable | None:
        """Ask whether a registry is there, by ``GET /v2/`` without the rights of anybody.

        What requesters do changes nothing about the answer: the request has connections of its own, and all of the
        time. If there are several roots, the one that decides about rights is asked.

        Args:
            registry: The registry.
            is_for_rights: Whether the answer decides about rights. Then no check for another purpose is in its way.

        Returns:
            None if it answers, whatever it says. Otherwise the reason; its `is_down` says whether it is out of order.
        """
        known = self._registries.get(registry)
        if (pause := known.pauses.of(None, is_root=True)) is not None:
            return pause
        ask = partial(self._root_client.ask_base, registry=registry)
        answer = await self._check(registry, known, ask, is_for_rights=is_for_rights)
        self._note(known, Question(registry, "", Endpoint.BASE, ""), answer)
        if not isinstance(answer, Unreachable):
            return None
        known.pauses.note(None, answer, is_root=True)
        return answer

    async def check_token_server(self, registry: str) -> Unreachable | None:
        """Ask whether the token server that a registry has named is there, as `check` does."""
        known = self._registries.get(registry)
        if (challenge := known.challenge) is None or challenge.is_basic:
            return Unreachable("it has named none", is_down=False)
        asked = partial(self._root_client.ask_token_server, challenge)
        answer = await self._check(registry, known, asked, is_for_rights=True)
        return answer if isinstance(answer, Unreachable) else None

    async def _check(
        self,
        registry: str,
        known: KnownRegistry,
        ask: Callable[[ApiRoot], Awaitable[Fetched | Refusal]],
        *,
        is_for_rights: bool,
    ) -> Fetched | Refusal:
        if self._slots is None:
            return not_asked("this mirror is not running")
        roots = await self._find_roots(registry)
        root = known.deciding_root(roots)
        if root is None:
            return not_asked("its API was not found")
        checks = self._checks[is_for_rights, known.standing]
        if checks.locked():
            return not_asked("it could not be checked now")
        async with checks:
            answer = await self._in_its_share(ask(root), 1)
            _note_host(known, registry, root, answer)
            return answer

    async def _find_roots(self, registry: str) -> Sequence[ApiRoot]:
        """Return where the API of a registry is; nothing if that can't be found out in time."""
        try:
            async with Deadline(self._limits.upstream_timeout):
                return await self._registries.roots(registry)
        except TimeoutError:
            return ()

    async def fetch(self, question: Question) -> Fetched | Refusal:
        """Read a document: the tags of a repository, or the referrers of a digest. All its pages are read.

        Args:
            question: The endpoint is `Endpoint.TAGS` or `Endpoint.REFERRERS`.

        Returns:
            The pages; or `Denied` if they have more than ``limits.upstream_answer`` bytes together, or if only some of
            them arrive in time.
        """
        pages: list[bytes] = []
        asking = self._try_roots(question, partial(self._root_client.fetch_pages, pages))
        answer = await self._bounded(question.registry, asking)
        return Denied("only a part of it arrived") if pages and isinstance(answer, Unreachable) else answer

    async def _bounded(self, registry: str, work: Coroutine[Any, Any, _T]) -> _T | Unreachable:
        """Return what `work` returns in time, as soon as there is a slot."""
        asked_at, slots = math.inf, self._registries.get(registry).slots
        try:
            if self._slots is None:
                return not_asked("this mirror is not running")
            async with Deadline(self._limits.upstream_timeout), slots:
                await self._registries.roots(registry)
                async with self._slots[self._registries.get(registry).standing]:
                    asked_at = time.monotonic()
                    return await work
        except TimeoutError:
            if time.monotonic() - asked_at < self._limits.upstream_timeout / 2:  # most of the time was for others
                return not_asked("too many questions are under way")
            return Unreachable(f"no answer in {self._limits.upstream_timeout:g} s")
        finally:
            work.close()  # it was not started if there was no slot in time

    async def _try_roots(self, question: Question, ask: Callable[[ApiRoot, Question], Awaitable[_T]]) -> _T | Refusal:
        """Return the first good answer of the registry's roots. Without one, a challenge goes first, then the last.

        The last root is the registry itself. The others are its mirrors.
        """
        known = self._registries.get(question.registry)
        is_root = question.endpoint is Endpoint.BASE
        if (pause := known.pauses.of(question.authorization, is_root=is_root)) is not None:
            return pause
        roots: Sequence[ApiRoot] = await self._registries.roots(question.registry)
        if question.authorization is not None and len(roots) > 1:
            await self._learn_challenge(question.registry, known, math.inf)
            roots = (known.deciding_root(roots) or roots[-1],)
        challenged: Challenged | None = None
        answer: _T | Refusal = not_asked("its API was not found")
        for number, root in enumerate(roots, 1):
            answer = await self._in_its_share(ask(root, question), len(roots))
            _note_host(known, question.registry, root, answer)
            self._note(known, question, answer)
            match answer:
                case Challenged() if challenged is None:
                    challenged, known.challenger = answer, root
                case Unreachable() as unreachable if number == len(roots):
                    known.pauses.note(question.authorization, unreachable, is_root=is_root)
                case Challenged() | Denied() | Absent() | Unreachable():
                    pass
                case _:
                    return answer
        return challenged or answer

    def _note(self, known: KnownRegistry, question: Question, answer: object) -> None:
        self._count(question.endpoint.value, type(answer).__name__.lower())
        if not isinstance(answer, Unreachable):
            known.note_answer()

    async def _in_its_share(self, work: Awaitable[_T | Refusal], roots: int) -> _T | Refusal:
        """Return the answer of one of several roots. None of them uses the time of the others."""
        seconds = self._limits.upstream_timeout / roots
        try:
            async with Deadline(seconds):
                return await work
        except TimeoutError:
            return Unreachable(f"no answer in {seconds:g} s")

    async def _learn_challenge(
        self, registry: str, known: KnownRegistry, within: float
    ) -> Challenge | Unreachable | None:
        async with known.asking:
            if known.is_fresh(within):
                return known.challenge
            question = Question(registry, "", Endpoint.BASE, "")
            answer = await self._try_roots(question, lambda root, _: self._root_client.ask_base(root, registry))
            match answer:
                case Unreachable():
                    return answer
                case Challenged(challenge):
                    known.challenge = challenge
                case _:
                    known.challenge = known.challenger = None
            known.keep_challenge()
            return known.challenge


def _note_host(known: KnownRegistry, registry: str, root: ApiRoot, answer: object) -> None:
    """Note that the host of a registry is there. Not if this host has refused to connect to it (`Denied`)."""
    if root.serves(registry) and not isinstance(answer, (Denied, Unreachable)):
        known.is_there = True


def _new_checks() -> dict[tuple[bool, Standing], asyncio.Semaphore]:
    """Return the slots of checks: whether they are for rights, and how much is known about the registries."""
    return {(rights, standing): asyncio.Semaphore(MOST_CHECKS) for rights in (False, True) for standing in Standing}
