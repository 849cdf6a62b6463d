"""Asks registries whether somebody may read something: each question once at a time, and not while they are down."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from peili.mirror.errors import NotFound, Unavailable
from peili.mirror.oci.references import Digest
from peili.mirror.oci.requests import Endpoint
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.interfaces import Context
from peili.mirror.rights.credentials import ANYBODY, Credential
from peili.mirror.rights.outages import RETRY, Outages
from peili.mirror.support.expiring import Expiring
from peili.mirror.support.single_flight import SingleFlight
from peili.mirror.support.tasks import Tasks
from peili.mirror.upstream.answers import Answer, Challenged, Question, Unreachable
from peili.mirror.upstream.challenges import Challenge
from peili.mirror.upstream.client import UpstreamClient

_LATELY = 2.0
"""If a registry has answered within this many seconds, it is there."""
_MOST_IN_VAIN = 4096


@dataclass(frozen=True, slots=True)
class Resource:
    """What somebody wants to read.

    Attributes:
        registry: The registry, in lower case: a request must not split what is known about it.
        repository: The repository.
        endpoint: `Endpoint.MANIFEST` or `Endpoint.BLOB`.
        digest: The digest.
    """

    registry: str
    repository: str
    endpoint: Endpoint
    digest: Digest

    def __post_init__(self) -> None:
        object.__setattr__(self, "registry", self.registry.lower())

    @property
    def scope(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"


class RegistryAnswers:
    """Asks registries on behalf of this host's runtime. Used on one event loop; never raises for their faults.

    If it returns an `Unreachable`, `is_down` is true only if the registry is down for everybody (outages.py).

    Args:
        context: The context of the mirror.
        client: Asks them.
        clock: Seconds that never go back.
    """

    def __init__(self, context: Context, client: UpstreamClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._client = client
        self._clock = clock
        self._tasks = Tasks(context.log)
        self._outages = Outages(client.check, self._tasks, context.log, clock)
        self._token_servers = Outages(
            client.check_token_server, self._tasks, context.log, clock, title="the token server of "
        )
        self._asking = SingleFlight[tuple[bytes, Resource], Answer](self._tasks)
        self._in_vain: Expiring[tuple[bytes, str], Unreachable] = Expiring(_MOST_IN_VAIN, clock)

    async def ask(self, credential: Credential, resource: Resource) -> Answer:
        """Return what the registry says, with the rights of `credential`. Concurrent equal questions are one."""
        try:
            if (down := await self._outages.suspected(resource.registry)) is not None:
                return down
            if (in_vain := self._in_vain.get((credential.key, resource.registry))) is not None:
                return in_vain
            return await self._asking.call((credential.key, resource), lambda: self._ask(credential, resource))
        except Unavailable as error:  # the mirror is exited
            return Unreachable(str(error), is_down=False)

    async def ask_for_anybody(self, resource: Resource, *, is_doubted: bool = False) -> Answer:
        """Return what the registry says to a request without rights. If it challenges those, it is not asked again.

        Args:
            resource: What is requested.
            is_doubted: Make sure that the registry and its token server are there, unless they have answered within
                two seconds. A challenge is of no use while one of them is down.
        """
        registry, started = resource.registry, self._clock()
        try:
            if is_doubted and (down := await self._outages.find(registry, started - _LATELY)) is not None:
                return down
            answer = await self._outages.suspected(registry) or await self._client.challenge(registry)
            match answer:
                case Challenge():
                    is_doubted &= not answer.is_basic
                    down = await self._token_servers.find(registry, started - _LATELY) if is_doubted else None
                    return down or Challenged(answer)
                case Unreachable():
                    return await self._judge(registry, answer, started)
                case None:
                    return await self.ask(ANYBODY, resource)
        except Unavailable as error:
            return Unreachable(str(error), is_down=False)

    async def prepare(self, registry: str) -> None:
        """Make sure that an outage of a registry will be found, once, while it answers."""
        with suppress(Unavailable):
            await self._outages.prepare(registry)
            await self._token_servers.prepare(registry)

    async def aclose(self) -> None:
        """Cancel the questions in progress."""
        async with self._tasks:
            pass

    async def _ask(self, credential: Credential, resource: Resource) -> Answer:
        registry, started = resource.registry, self._clock()
        size = await self._size(resource.digest) if resource.endpoint is Endpoint.BLOB else None
        answer = await self._client.ask(
            Question(registry, resource.repository, resource.endpoint, resource.digest, credential.header, size=size)
        )
        if not isinstance(answer, Unreachable):
            self._outages.note_answer(registry)
            return answer
        judged = await self._judge(registry, answer, started)
        if not judged.is_down:  # its next questions should not have to wait, too
            self._in_vain.set((credential.key, registry), judged, RETRY)
        return judged

    async def _size(self, digest: Digest) -> int | None:
        """Return the size of a blob, if the store has it."""
        describe = partial(self._context.store.describe, digest)
        try:
            return (
                await call(describe, self._context, "the store", about=digest, allowed=(NotFound, Unavailable))
            ).size
        except (NotFound, Unavailable):
            return None

    async def _judge(self, registry: str, answer: Unreachable, since: float) -> Unreachable:
        """Return why there is no answer: because the registry is down, or for a reason that concerns one requester."""
        return await self._outages.find(registry, since) or replace(answer, is_down=False)
