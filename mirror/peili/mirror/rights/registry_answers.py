"""Asks registries whether somebody may read something: each question once at a time, and not while they are down."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from peili.mirror.oci.references import Digest
from peili.mirror.oci.requests import Endpoint
from peili.mirror.rights.credentials import Credential
from peili.mirror.support.tasks import Tasks
from peili.mirror.upstream.answers import Answer, Question, Unreachable
from peili.mirror.upstream.challenges import Challenge
from peili.mirror.upstream.client import UpstreamClient

RETRY = 2.0
"""Seconds for which a registry that does not answer is not asked again. Each pull has many requests."""
_MOST_REGISTRIES = 256


@dataclass(frozen=True, slots=True)
class Resource:
    """What somebody wants to read.

    Attributes:
        registry: The registry.
        repository: The repository.
        endpoint: `Endpoint.MANIFEST` or `Endpoint.BLOB`.
        digest: The digest.
    """

    registry: str
    repository: str
    endpoint: Endpoint
    digest: Digest

    @property
    def scope(self) -> str:
        """Registry and repository."""
        return f"{self.registry.lower()}/{self.repository}"


class RegistryAnswers:
    """Asks registries on behalf of this host's runtime. Used on one event loop; never raises for their faults.

    Args:
        client: Asks them.
        log: Receives one line when a registry stops to answer, and one when it answers again.
        clock: Seconds that never go back.
    """

    def __init__(
        self, client: UpstreamClient, log: logging.Logger, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._log = log
        self._clock = clock
        self._tasks = Tasks(log)
        self._asking: dict[tuple[bytes, Resource], asyncio.Task[Answer]] = {}
        self._down: OrderedDict[str, float] = OrderedDict()  # registries that did not answer, until when

    async def ask(self, credential: Credential, resource: Resource) -> Answer:
        """Return what the registry says, with the rights of `credential`. Concurrent equal questions are one."""
        if (down := self._outage(resource.registry)) is not None:
            return down
        key = (credential.key, resource)
        if (task := self._asking.get(key)) is None:
            task = self._asking[key] = self._tasks.start(self._ask(credential, resource))
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return await asyncio.shield(task)

    async def challenge(self, registry: str) -> Challenge | Unreachable | None:
        """Return how the registry challenges requests without rights; None if it does not."""
        answer = self._outage(registry) or await self._client.challenge(registry)
        if isinstance(answer, Unreachable):
            self._note_outage(registry, answer)
        return answer

    async def aclose(self) -> None:
        """Cancel the questions in progress."""
        async with self._tasks:
            pass

    async def _ask(self, credential: Credential, resource: Resource) -> Answer:
        registry, repository = resource.registry, resource.repository
        answer = await self._client.ask(
            Question(registry, repository, resource.endpoint, resource.digest, credential.header)
        )
        if isinstance(answer, Unreachable):
            self._note_outage(registry, answer)
        elif self._down.pop(registry, None) is not None:
            self._log.info("%s answers again", registry)
        return answer

    def _outage(self, registry: str) -> Unreachable | None:
        until = self._down.get(registry)
        return Unreachable("it did not answer just now") if until is not None and self._clock() < until else None

    def _note_outage(self, registry: str, answer: Unreachable) -> None:
        if registry not in self._down:
            self._log.warning("%s does not say who may pull: %s", registry, answer.why)
        self._down[registry] = max(self._down.get(registry, 0.0), self._clock() + RETRY)
        self._down.move_to_end(registry)
        if len(self._down) > _MOST_REGISTRIES:
            self._down.popitem(last=False)
