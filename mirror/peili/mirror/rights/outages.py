"""Finds out whether a registry, or its token server, is down, in a way that no requester can influence.

A question without an answer says little: the registry may limit one requester, and one requester may ask so much that
this host has no slot left. So the registry is asked for the root of its API, without the rights of anybody.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from peili.mirror.support.single_flight import SingleFlight
from peili.mirror.support.tasks import Tasks
from peili.mirror.upstream.answers import Unreachable

RETRY = 2.0
"""Seconds for which a registry that is down is not asked again. Each pull has many requests."""
_INTERVAL = 0.5
"""Seconds between two checks of a registry."""
_HOPELESS = 60.0
"""Seconds between two checks of a registry that has never answered one."""
_MOST_REGISTRIES = 256


@dataclass(slots=True)
class _State:
    """What is known of a registry.

    Attributes:
        answered_at: When it answered last.
        checked_at: When it was checked last.
        is_checkable: Whether it has answered a check. If it never does, its silence shows nothing.
        down: Why it is down; None if it is not.
        down_until: Until when that counts.
    """

    answered_at: float = float("-inf")
    checked_at: float = float("-inf")
    is_checkable: bool = False
    down: Unreachable | None = None
    down_until: float = float("-inf")

    @property
    def standing(self) -> tuple[bool, bool]:
        """How much is known. What is less is forgotten earlier."""
        return self.is_checkable, self.answered_at > float("-inf")


class Outages:
    """Which registries are down. Used on one event loop.

    Args:
        check: Asks one of them, without the rights of anybody. It is named by the name of the registry.
        tasks: Owns the checks.
        log: Receives one line when a registry goes down, and one when it answers again.
        clock: Seconds that never go back.
        title: What stands before the name of a registry in the log.
    """

    def __init__(
        self,
        check: Callable[[str], Awaitable[Unreachable | None]],
        tasks: Tasks,
        log: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
        *,
        title: str = "",
    ) -> None:
        self._title = title
        self._ask = check
        self._log = log
        self._clock = clock
        self._checks = SingleFlight[str, Unreachable | None](tasks)
        self._states: OrderedDict[str, _State] = OrderedDict()

    def note_answer(self, registry: str) -> None:
        """Note that a registry has answered, whatever and whom."""
        state = self._of(registry)
        state.answered_at = self._clock()
        if state.down is not None:
            self._log.info("%s%s answers again", self._title, registry)
            state.down = None

    async def prepare(self, registry: str) -> None:
        """Check a registry that answers, unless it was checked before: one that answers no check is never down."""
        if not self.is_prepared(registry):
            await self._checks.call(registry, lambda: self._check(registry))

    def is_prepared(self, registry: str) -> bool:
        """Return whether a registry was checked before."""
        return self._of(registry).checked_at > float("-inf")

    async def suspected(self, registry: str) -> Unreachable | None:
        """Return why a registry is down; None if it is not, or was not when somebody last looked.

        It costs nothing, unless the registry was down and it is time to look again.
        """
        return None if self._of(registry).down is None else await self.find(registry, self._clock())

    async def find(self, registry: str, since: float) -> Unreachable | None:
        """Return why a registry is down. It may be asked, which takes up to ``limits.upstream_timeout`` seconds.

        Args:
            registry: The registry.
            since: A time by the clock. If the registry has answered anybody since then, it is not down.
        """
        state = self._of(registry)
        if state.down is not None and self._clock() < state.down_until:
            return state.down
        is_hopeless = not state.is_checkable and self._clock() < state.checked_at + _HOPELESS
        if state.answered_at >= since or is_hopeless:
            return None
        return await self._checks.call(registry, lambda: self._check(registry))

    async def _check(self, registry: str) -> Unreachable | None:
        await asyncio.sleep(max(0.0, self._of(registry).checked_at + _INTERVAL - self._clock()))
        answer = await self._ask(registry)
        state = self._of(registry)
        if answer is not None and not answer.was_asked:
            return state.down  # who keeps this host from checking neither begins nor ends an outage
        state.checked_at = self._clock()
        if answer is None:
            state.is_checkable = True
            self.note_answer(registry)
            return None
        if not (answer.is_down and state.is_checkable):
            state.down = None
            return None
        if state.down is None:
            self._log.warning("%s%s is down: %s", self._title, registry, answer.why)
        state.down, state.down_until = answer, self._clock() + RETRY
        return answer

    def _of(self, registry: str) -> _State:
        """Return what is known of a registry. If there are too many, one of the others is forgotten.

        Anybody can invent names that a wildcard covers. So one that has never answered is forgotten first.
        """
        if (state := self._states.get(registry)) is not None:
            self._states.move_to_end(registry)
            return state
        if len(self._states) >= _MOST_REGISTRIES:
            del self._states[min(self._states, key=lambda each: self._states[each].standing)]
        state = self._states[registry] = _State()
        return state
