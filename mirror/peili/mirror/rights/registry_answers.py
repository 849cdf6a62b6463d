"""Asks registries whether somebody may read something: each question once at a time, and not while they are down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from peili.mirror.errors import NotFound, Unavailable
from peili.mirror.oci.references import Digest
from peili.mirror.oci.requests import Endpoint
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.interfaces import Context
from peili.mirror.rights.credentials import ANYBODY, Credential
from peili.mirror.rights.outages import RETRY, Outages
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.expiring import Expiring
from peili.mirror.support.single_flight import SingleFlight
from peili.mirror.support.tasks import Tasks
from peili.mirror.upstream.answers import Answer, Challenged, Question, Unreachable
from peili.mirror.upstream.challenges import Challenge
from peili.mirror.upstream.client import UpstreamClient

_T = TypeVar("_T")

_LATELY = 2.0
"""If a registry has answered within this many seconds, it is there."""
_MOST_IN_VAIN = 4096
_PATIENCE = 1.5
"""How long an answer may take, as a multiple of ``limits.upstream_timeout``."""
_DOUBT = 0.25
"""After this part of ``limits.upstream_timeout``, a registry that has not answered is checked."""
_PREPARATION = 0.5
"""How long `RegistryAnswers.prepare` is waited for, as a multiple of ``limits.upstream_timeout``."""


@dataclass(frozen=True, slots=True)
class Resource:
    """What somebody wants to read.

    Attributes:
        registry: The registry, in lower case: a request must not split what is known about it.
        repository: The repository.
        endpoint: `Endpoint.MANIFEST` or `Endpoint.BLOB`.
        reference: The digest, or the tag of a manifest.
    """

    registry: str
    repository: str
    endpoint: Endpoint
    reference: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "registry", self.registry.lower())

    @property
    def scope(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def digest(self) -> Digest | None:
        """The digest; None for a tag."""
        return self.reference if isinstance(self.reference, Digest) else None


class RegistryAnswers:
    """Asks registries on behalf of this host's runtime. Used on one event loop; never raises for their faults.

    If it returns an `Unreachable`, `is_down` is true only if the registry is down for everybody (outages.py). Each
    answer is there after at most one and a half times ``limits.upstream_timeout`` seconds, and a call of the store.

    Args:
        context: The context of the mirror.
        client: Asks them.
        clock: Seconds that never go back.
    """

    def __init__(self, context: Context, client: UpstreamClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._client = client
        self._clock = clock
        self._timeout = context.limits.upstream_timeout
        self._tasks = Tasks(context.log)
        self._outages = Outages(partial(client.check, is_for_rights=True), self._tasks, context.log, clock)
        self._token_servers = Outages(
            client.check_token_server, self._tasks, context.log, clock, title="the token server of "
        )
        self._asking = SingleFlight[tuple[bytes, Resource], Answer](self._tasks)
        self._preparing = SingleFlight[str, None](self._tasks)
        self._in_vain: Expiring[tuple[bytes, str], Unreachable] = Expiring(_MOST_IN_VAIN, clock)

    async def ask(self, credential: Credential, resource: Resource) -> Answer:
        """Return what the registry says, with the rights of `credential`. Concurrent equal questions are one."""
        return await self._in_time(self._ask_unless_in_vain(credential, resource))

    async def demand(self, registry: str) -> Challenged | Unreachable | None:
        """Return what the registry says to everybody without rights; None if it does not challenge each of them."""
        return await self._in_time(self._demand(registry, self._clock()))

    async def ask_for_anybody(self, resource: Resource, *, is_doubted: bool = False) -> Answer:
        """Return what the registry says to a request without rights. If it challenges those, it is not asked again.

        Args:
            resource: What is requested.
            is_doubted: Make sure that the registry and its token server are there, unless they have answered within
                two seconds. A challenge is of no use while one of them is down.
        """
        return await self._in_time(self._challenge_or_ask(resource, is_doubted=is_doubted))

    async def prepare(self, registry: str) -> None:
        """Make sure that an outage of a registry will be found, once, while it answers.

        Takes at most half of ``limits.upstream_timeout``. What takes longer goes on.
        """
        if self._outages.is_prepared(registry) and self._token_servers.is_prepared(registry):
            return
        with suppress(TimeoutError, Unavailable):
            async with Deadline(_PREPARATION * self._timeout):
                await self._preparing.call(registry, lambda: self._prepare(registry))

    async def aclose(self) -> None:
        """Cancel the questions in progress."""
        async with self._tasks:
            pass

    async def _in_time(self, asking: Coroutine[Any, Any, _T]) -> _T | Unreachable:
        try:
            async with Deadline(_PATIENCE * self._timeout):
                return await asking
        except TimeoutError:
            return Unreachable("it does not answer in time", is_down=False)
        except Unavailable as error:  # the mirror is exited
            return Unreachable(str(error), is_down=False)

    async def _ask_unless_in_vain(self, credential: Credential, resource: Resource) -> Answer:
        if (down := await self._outages.suspected(resource.registry)) is not None:
            return down
        if (in_vain := self._in_vain.get((credential.key, resource.registry))) is not None:
            return in_vain
        return await self._asking.call((credential.key, resource), lambda: self._ask(credential, resource))

    async def _challenge_or_ask(self, resource: Resource, *, is_doubted: bool) -> Answer:
        registry, started = resource.registry, self._clock()
        if is_doubted and (down := await self._outages.find(registry, started - _LATELY)) is not None:
            return down
        answer = await self._demand(registry, started)
        if isinstance(answer, Challenged) and is_doubted and not answer.challenge.is_basic:
            return await self._token_servers.find(registry, started - _LATELY) or answer
        return answer or await self._ask_unless_in_vain(ANYBODY, resource)

    async def _demand(self, registry: str, started: float) -> Challenged | Unreachable | None:
        answer = await self._outages.suspected(registry) or await self._client.challenge(registry)
        match answer:
            case Challenge():
                return Challenged(answer)
            case Unreachable():
                return await self._outages.find(registry, started) or replace(answer, is_down=False)
            case None:
                return None

    async def _prepare(self, registry: str) -> None:
        with suppress(Unavailable):
            await self._outages.prepare(registry)
            await self._token_servers.prepare(registry)

    async def _ask(self, credential: Credential, resource: Resource) -> Answer:
        registry = resource.registry
        size = await self._size(resource.digest) if resource.digest and resource.endpoint is Endpoint.BLOB else None
        answer = await self._ask_and_check(
            Question(registry, resource.repository, resource.endpoint, resource.reference, credential.header, size=size)
        )
        if isinstance(answer, Unreachable) and not answer.is_down:  # its next questions should not have to wait, too
            self._in_vain.set((credential.key, registry), answer, RETRY)
        return answer

    async def _ask_and_check(self, question: Question) -> Answer:
        """Ask a registry. If it does not answer soon, find out meanwhile whether it is down for everybody.

        One after the other would take twice as long, while the runtime waits.
        """
        registry, started = question.registry, self._clock()
        asking = self._tasks.start(self._client.ask(question))
        checking: asyncio.Task[Unreachable | None] | None = None
        try:
            await asyncio.wait([asking], timeout=_DOUBT * self._timeout)
            if not asking.done():
                checking = self._tasks.start(self._outages.find(registry, started))
            answer = await asking
            if not isinstance(answer, Unreachable):
                self._outages.note_answer(registry)
                return answer
            down = await (checking or self._outages.find(registry, started))
            return down or replace(answer, is_down=False)
        finally:
            asking.cancel()
            if checking is not None:
                checking.cancel()

    async def _size(self, digest: Digest) -> int | None:
        """Return the size of a blob, if the store has it."""
        describe = partial(self._context.store.describe, digest)
        try:
            return (
                await call(describe, self._context, "the store", about=digest, allowed=(NotFound, Unavailable))
            ).size
        except (NotFound, Unavailable):
            return None
