"""Registries that a requester has invented take nothing of what others need to be asked, or checked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from tests.mirror.upstream.registries import DIGEST, PATIENT, READABLE, SmallRegistry
from tests.support.clock import Clock
from tests.support.neighbours import served_together
from tests.support.waiting import until

from peili.mirror.oci.requests import Endpoint
from peili.mirror.rights.credentials import ANYBODY
from peili.mirror.rights.registry_answers import RegistryAnswers, Resource
from peili.mirror.support.tasks import Tasks
from peili.mirror.testing import context_for
from peili.mirror.upstream.answers import Question, Unreachable
from peili.mirror.upstream.api_roots import ApiRoot, trusting
from peili.mirror.upstream.client import UpstreamClient
from peili.mirror.upstream.exchanges import MOST_CHECKS
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

NAME = "registry.example"


@asynccontextmanager
async def with_silent_registries(
    roots: Callable[[str], ApiRoot],
) -> AsyncGenerator[tuple[UpstreamClient, SmallRegistry, SmallRegistry]]:
    """Yield a client, a registry, and what all other registries lead to, with `roots`. It does not answer.

    The registry is `NAME`, which is configured, and its address, which is not.
    """
    registry, silent = SmallRegistry(), SmallRegistry()
    silent.open.clear()
    async with served_together(registry, silent) as (url, silent_url):
        registry.url = url

        def find(name: str) -> list[ApiRoot]:
            if name in url:
                return [ApiRoot.of(url, is_default=True)]
            return [ApiRoot.of(url) if name == NAME else roots(silent_url)]

        try:
            async with UpstreamClient(PATIENT, roots=find) as client:
                yield client, registry, silent
        finally:
            silent.open.set()


async def occupy(client: UpstreamClient, silent: SmallRegistry, tasks: Tasks) -> None:
    """Check as many silent registries as can be checked at the same time."""
    for number in range(MOST_CHECKS):
        tasks.start(client.check(f"{number}.silent.example"))
    await until(lambda: len(silent.asked) == MOST_CHECKS)
    assert await client.check("one-more.silent.example") is not None
    assert len(silent.asked) == MOST_CHECKS


def default(url: str) -> ApiRoot:
    return ApiRoot.of(url, is_default=True)


async def test_a_registry_that_is_configured_is_checked_however_many_others_are_silent() -> None:
    async with with_silent_registries(default) as (client, _, silent), Tasks() as tasks:
        await occupy(client, silent, tasks)
        for is_for_rights in (False, True):
            assert await client.check(NAME, is_for_rights=is_for_rights) is None


async def test_a_registry_that_has_answered_is_asked_and_checked_however_many_others_are_silent() -> None:
    """For example, one that only a wildcard covers."""
    async with with_silent_registries(default) as (client, registry, silent), Tasks() as tasks:
        name = registry.url.removeprefix("http://")
        question = Question(name, "acme/demo", Endpoint.MANIFEST, "v1")
        assert await client.ask(question) == READABLE
        await occupy(client, silent, tasks)
        for is_for_rights in (False, True):
            assert await client.check(name, is_for_rights=is_for_rights) is None
        for number in range(PATIENT.upstream_requests):
            tasks.start(client.ask(replace(question, registry=f"{number}.silent.example")))
        await until(lambda: len(silent.asked) == MOST_CHECKS + PATIENT.upstream_requests)
        assert await client.ask(question) == READABLE


async def test_what_is_known_of_a_registry_is_not_forgotten_for_invented_ones() -> None:
    async with with_silent_registries(default) as (client, registry, silent):
        names = (NAME, registry.url.removeprefix("http://"))
        silent.open.set()
        for name in names:
            assert await client.challenge(name) is None
        for number in range(300):
            await client.challenge(f"{number}.silent.example")
        registry.asked.clear()
        for name in names:
            assert await client.challenge(name) is None
        assert not registry.asked


async def test_an_outage_ends_for_rights_however_many_registries_are_checked_for_tags() -> None:
    clock = Clock()
    resource = Resource(NAME, "acme/demo", Endpoint.MANIFEST, DIGEST)
    async with (
        with_silent_registries(ApiRoot.of) as (client, registry, silent),
        context_for(MemoryStore(), limits=PATIENT) as context,
        Tasks() as tasks,
    ):
        answers = RegistryAnswers(context, client, clock)
        await answers.prepare(NAME)
        working, registry.default = registry.default, (503, {}, b"")
        clock.now += 10
        answer = await answers.ask(ANYBODY, resource)
        assert isinstance(answer, Unreachable)
        assert answer.is_down
        registry.default = working
        await occupy(client, silent, tasks)
        clock.now += 10
        assert await answers.ask(ANYBODY, resource) == READABLE
        await answers.aclose()


def test_a_registry_that_the_operator_has_named_is_not_invented() -> None:
    def find(name: str) -> list[ApiRoot]:
        return [ApiRoot.of(f"https://{name}", is_default=True, is_assumed=True)]

    (root,) = trusting(find, lambda name: name == NAME)(NAME)
    assert not root.is_default
    assert not root.is_assumed
