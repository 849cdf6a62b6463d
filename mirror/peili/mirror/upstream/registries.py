"""What the client knows about each registry: where its API is, how it challenges, and whom it wants to wait."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial

from peili.mirror.support.tasks import is_own_failure
from peili.mirror.support.threads import DaemonThreads
from peili.mirror.upstream.api_roots import ApiRoot, RootFinder
from peili.mirror.upstream.challenges import Challenge
from peili.mirror.upstream.pauses import Pauses

_MOST_REGISTRIES = 256
_ROOTS_TTL = 30.0
"""Seconds for which the roots of a registry are remembered. Their files may change."""
_CHALLENGE_TTL = 600.0
"""Seconds for which it is remembered how a registry challenges. If it does not answer then, the old answer stays."""


class Standing(IntEnum):
    """How much is known about a registry. Those with a lower standing take nothing from those with a higher one."""

    INVENTED = 0
    """Only requests have named it, and its host has never answered. Anybody can invent any number of them."""
    ANSWERED = 1
    """Nobody has configured it, but its host has answered."""
    CONFIGURED = 2


@dataclass(slots=True)
class KnownRegistry:
    """What is known about one registry.

    Attributes:
        challenge: How it challenges; None if it does not.
        challenger: The root that challenged last. Tokens are for this one only.
        asking: Held while the registry is asked how it challenges.
        slots: Held by each question.
        pauses: Who has to wait.
        is_there: Whether its own host has answered, not only a mirror of it.
    """

    slots: asyncio.Semaphore
    challenge: Challenge | None = None
    challenger: ApiRoot | None = None
    is_there: bool = False
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    pauses: Pauses = field(default_factory=Pauses)
    _roots: tuple[ApiRoot, ...] = ()
    _roots_until: float = 0.0
    _challenged_at: float | None = None
    _answered_at: float = 0.0

    @property
    def standing(self) -> Standing:
        """How much is known about the registry, by the roots that were found last."""
        if self._roots and not any(each.is_assumed or each.is_default for each in self._roots):
            return Standing.CONFIGURED
        return Standing.ANSWERED if self.is_there else Standing.INVENTED

    @property
    def has_answered(self) -> bool:
        """Whether the registry has said how it challenges."""
        return self._challenged_at is not None

    def is_fresh(self, within: float) -> bool:
        """Return whether `challenge` is fresh, and the registry has answered anything `within` this many seconds."""
        now = time.monotonic()
        is_known = self._challenged_at is not None and now < self._challenged_at + _CHALLENGE_TTL
        return is_known and now - self._answered_at < within

    def keep_challenge(self) -> None:
        """Remember `challenge`, which the registry has just said."""
        self._challenged_at = time.monotonic()

    def note_answer(self) -> None:
        """Remember that the registry, or a mirror of it, has just answered."""
        self._answered_at = time.monotonic()

    async def roots(self, find: RootFinder, registry: str, threads: DaemonThreads) -> tuple[ApiRoot, ...]:
        """Return where the API of `registry` is. Raises what `find` raises."""
        if time.monotonic() >= self._roots_until:
            self._roots = tuple(await threads.run(partial(find, registry)))
            self._roots_until = time.monotonic() + _ROOTS_TTL
            if self.challenger is not None and self._roots and self._challenger_in(self._roots) is None:
                self.challenge = self.challenger = self._challenged_at = None  # it is no longer configured
        return self._roots

    def deciding_root(self, roots: Sequence[ApiRoot]) -> ApiRoot | None:
        """Return the one of `roots` that decides about rights; None if there are none.

        That is the one that challenged last. If it is not among them, it is the last one, the registry itself.
        """
        return self._challenger_in(roots) or (roots[-1] if roots else None)

    def _challenger_in(self, roots: Sequence[ApiRoot]) -> ApiRoot | None:
        url = None if self.challenger is None else self.challenger.url
        return next((each for each in roots if each.url == url), None)


class KnownRegistries:
    """The registries that were asked.

    If there are too many, one with the lowest standing is forgotten: of these, the one that was unused for longest.

    Args:
        find_roots: Finds the API of a registry.
        threads: Calls it.
        log: Receives its errors.
        most: The largest number of questions to one registry at the same time.
    """

    def __init__(self, find_roots: RootFinder, threads: DaemonThreads, log: logging.Logger, most: int) -> None:
        self._most = most
        self._find_roots = find_roots
        self._threads = threads
        self._log = log
        self._known: OrderedDict[str, KnownRegistry] = OrderedDict()

    def get(self, registry: str) -> KnownRegistry:
        """Return what is known about `registry`."""
        name = registry.lower()
        if (known := self._known.get(name)) is not None:
            self._known.move_to_end(name)
            return known
        if len(self._known) >= _MOST_REGISTRIES:
            del self._known[min(self._known, key=lambda each: self._known[each].standing)]
        known = self._known[name] = KnownRegistry(asyncio.Semaphore(self._most))
        return known

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()

    async def roots(self, registry: str) -> tuple[ApiRoot, ...]:
        """Return where the API of `registry` is; nothing if that can't be found out, which is logged."""
        try:
            return await self.get(registry).roots(self._find_roots, registry.lower(), self._threads)
        except BaseException as error:  # a function of the host agent, which may raise anything
            if not is_own_failure(error):
                raise
            self._log.exception("%s: where its API is could not be found out", registry)
            return ()
