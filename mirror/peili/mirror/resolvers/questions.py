"""What the questions of the resolver ``upstream`` have in common: who asks, and what becomes of a challenge."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from peili.mirror.errors import AuthorizationRequired, Unavailable
from peili.mirror.limits import Limits
from peili.mirror.oci.requests import Requester
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.single_flight import SingleFlight
from peili.mirror.support.tasks import Tasks
from peili.mirror.upstream.answers import Challenged, Unreachable, not_asked
from peili.mirror.upstream.client import UpstreamClient

_T = TypeVar("_T")

STALE = '110 - "Response is Stale", 111 - "Revalidation Failed"'
"""The Warning header of an answer that the registry has not confirmed (RFC 7234, 5.5)."""

_SHARE = 0.9
"""What is used of the time that there is. The rest is for a slow machine."""
_PATIENCE = 1.2
"""A question ends by itself before this many times ``limits.upstream_timeout``, and then says whether it was asked."""
LATELY = 2.0
"""If a registry has answered anything within this many seconds, it is there, and a challenge of it is of use."""


async def without_rights(
    upstream: UpstreamClient, registry: str, repository: str, within: float
) -> Challenged | Unreachable | None:
    """Return how a registry answers requests without rights; None if it has to be asked.

    Most registries let nobody in without a token. To learn that from a real question would cost one more.

    Args:
        upstream: Asks registries.
        registry: The registry.
        repository: The repository.
        within: If the registry has not answered anything for this many seconds, it is asked whether it is there.
    """
    challenge = await upstream.probe(registry, within)
    if challenge is None or isinstance(challenge, Unreachable):
        return challenge
    return Challenged(challenge.for_repository(repository))


class Questions:
    """Waits for answers of registries, and finds out whether a registry without an answer is silent.

    Only then, other hosts may say what it means. A requester that keeps this host busy must not bring that about: so if
    it is not known that the registry was asked, it is checked, with a connection that no requester can take.

    Args:
        upstream: Checks registries.
        tasks: Owns the checks.
        limits: The answer takes so long that a question to peers, too, ends within ``first_byte_timeout``.
    """

    def __init__(self, upstream: UpstreamClient, tasks: Tasks, limits: Limits) -> None:
        self._upstream = upstream
        self._checks = SingleFlight[str, Unreachable | None](tasks)
        in_total = limits.first_byte_timeout
        self._most = max(_SHARE * in_total - limits.lookup_timeout, in_total / 3)
        self._patience = min(_PATIENCE * limits.upstream_timeout, _SHARE * self._most)

    async def settle(self, registry: str, asking: Awaitable[_T]) -> _T | Unreachable:
        """Return the answer of a registry. It is `Unreachable` in time, however many requests it takes.

        If its `was_asked` is true, the registry does not answer, or it wants fewer requests. Otherwise this host could
        not ask it, and the runtime should.
        """
        end = asyncio.get_running_loop().time() + self._most
        is_needed = asyncio.Event()
        checking = asyncio.create_task(self._check_later(registry, is_needed))
        try:
            answer = await _in_time(asking, self._patience)
            if not isinstance(answer, Unreachable) or answer.was_asked:
                return answer
            is_needed.set()
            async with Deadline(max(end - asyncio.get_running_loop().time(), 0.0)):
                return await checking or answer
        except TimeoutError:
            return Unreachable("it does not answer a check")
        finally:
            checking.cancel()

    async def _check_later(self, registry: str, is_needed: asyncio.Event) -> Unreachable | None:
        """Check a registry that has not answered for a while, or as soon as this is needed. Most answer before."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience / 2):
                await is_needed.wait()
        try:
            checked = await self._checks.call(registry.lower(), lambda: self._upstream.check(registry))
        except Unavailable as error:  # the mirror is exited
            return not_asked(str(error))
        return checked


async def _in_time(asking: Awaitable[_T], seconds: float) -> _T | Unreachable:
    try:
        async with Deadline(seconds):
            return await asking
    except TimeoutError:
        return not_asked(f"no answer in {seconds:g} s")


def demand_rights(answer: object, requester: Requester) -> None:
    """Raise AuthorizationRequired if `answer` is a challenge to a requester that can get a token, or a new one.

    If the registry refuses a token that has not expired, the requester has to find out there what is wrong.
    """
    if isinstance(answer, Challenged):
        challenge = answer.challenge
        is_expired = not challenge.is_basic and challenge.parameters.get("error") == "invalid_token"
        if requester.authorization is None or is_expired:
            raise AuthorizationRequired(str(challenge))
