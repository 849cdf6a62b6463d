"""Nobody can pretend that a registry is down, to get what others were granted, or to keep others from asking it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.mirror.rights.hosts import ALICE, BOB, Host, running
from tests.mirror.rights.registry import Registry, token
from tests.mirror.upstream.registries import SmallRegistry, registries
from tests.support.clock import Clock
from tests.support.neighbours import served
from tests.support.waiting import until

from peili.mirror import Limits
from peili.mirror.resolvers import UpstreamResolver
from peili.mirror.rights.outages import Outages
from peili.mirror.support.tasks import Tasks
from peili.mirror.upstream.answers import Unreachable

pytestmark = pytest.mark.anyio

MALLORY = f"Bearer {token('mallory')}"


@asynccontextmanager
async def granted(**options: Any) -> AsyncGenerator[Host]:
    """Yield a host on which Alice was granted an image lately. Her grant counts only in an outage."""
    async with running(rights={"outage": "remembered", "ttl": 1e-6}, **options) as host:
        async with asyncio.timeout(60):
            while await host.status(host.image.digest, rights=ALICE) != 200:  # noqa: ASYNC110 - on a slow machine
                await asyncio.sleep(0.05)
        yield host


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("headers", [{}, {"Retry-After": "100"}])
async def test_an_error_for_one_requester_is_no_outage_and_concerns_nobody_else(
    status: int, headers: dict[str, str]
) -> None:
    async with granted() as host:
        host.registry.troubles[MALLORY] = status, headers
        for _ in range(2):
            assert await host.status(host.image.digest, rights=MALLORY) == 404
        asked = [each for _, each in host.registry.asked]
        assert not headers or asked.count(MALLORY) == 1
        assert await host.status(host.image.digest, rights=BOB) == 403
        assert await host.status(host.image.digest, rights=ALICE) == 200
        assert await host.status(host.image.digest) == 401


async def test_an_outage_is_one_however_a_request_writes_the_name_of_the_registry() -> None:
    registry = Registry()
    async with registry.run():
        registry.name = registry.name.replace("127.0.0.1", "localhost")
        host = Host(registry, rights={"outage": "remembered", "ttl": 1e-6})
        async with host.mirror:
            await host.mirror.wait_ready(30)
            await until(host.follows_its_store)
            assert await host.status(host.image.digest, rights=ALICE) == 200
            registry.status = 503
            response = await host.get(host.image.digest, rights=ALICE, registry=registry.name.upper())
            assert response.status_code == 200
            assert await host.status(host.image.digest, rights=ALICE) == 200


async def test_a_check_that_this_host_cannot_make_ends_no_outage() -> None:
    registry, now, log = SmallRegistry(), [1000.0], logging.getLogger("peili.test")
    async with registries(registry) as client, Tasks(log) as tasks:
        outages = Outages(client.check, tasks, log, lambda: now[0])
        assert await outages.find("registry.example", now[0] + 1) is None
        registry.default = (503, {}, b"")
        now[0] += 10
        down = await outages.find("registry.example", now[0])
        assert down is not None
        await client.__aexit__()  # it checks nothing from now on
        now[0] += 10
        assert await outages.suspected("registry.example") == down


async def test_a_registry_that_does_not_answer_a_question_soon_is_checked_meanwhile() -> None:
    """One after the other would take twice as long."""
    async with running(limits=Limits(upstream_timeout=8)) as host:
        host.registry.silent_to.add(ALICE)
        asking = asyncio.create_task(host.status(host.image.digest, rights=ALICE))
        await until(lambda: host.registry.bases == 1)
        assert not asking.done()
        host.registry.never.set()
        assert await asking == 200


async def test_slow_answers_to_some_requesters_are_no_outage() -> None:
    """Neither for those who wait for a free slot, of which there are two for each registry."""
    async with granted(limits=Limits(upstream_timeout=2, upstream_requests=4)) as host:
        host.registry.silent_to |= {f"{MALLORY}{number}" for number in range(4)}
        asking = [host.status(host.image.digest, rights=each) for each in sorted(host.registry.silent_to)]
        *slow, bob = await asyncio.gather(*asking, host.status(host.image.digest, rights=BOB))
        assert slow == [404] * 4
        assert bob in {403, 404}  # the first if he gets a slot in time


async def test_a_registry_that_limits_also_requests_without_rights_is_left_alone_and_is_not_down() -> None:
    async with granted() as host:
        host.registry.status = 429
        for rights in (MALLORY, BOB, None, ALICE):
            assert await host.status(host.image.digest, rights=rights) in {404, 401}
            assert await host.status(host.secret.digest, rights=rights) in {404, 401}


@pytest.mark.parametrize("base", [(503, {}), (307, {"Location": "/v2/"}), (200, {"Content-Encoding": "gzip"})])
async def test_a_registry_that_never_answers_for_the_root_of_its_api_is_not_down(
    base: tuple[int, dict[str, str]],
) -> None:
    async with running(rights={"outage": "remembered", "ttl": 1e-6}) as host:
        host.registry.base = base
        assert await host.status(host.image.digest, rights=ALICE) == 200
        host.registry.troubles[MALLORY] = 503, {}
        assert await host.status(host.image.digest, rights=MALLORY) == 404


async def test_an_outage_is_found_by_a_request_without_rights_and_by_few_of_them() -> None:
    async with granted() as host:
        host.registry.status = 503
        before, asked = host.registry.bases, len(host.registry.asked)
        answers = await asyncio.gather(*(host.status(host.secret.digest, rights=f"{BOB}{n}") for n in range(3)))
        assert answers == [200] * 3
        assert host.registry.bases - before <= 3
        for rights in (ALICE, BOB, None):
            assert await host.status(host.secret.digest, rights=rights) == 200
        assert len(host.registry.asked) - asked <= 3


async def test_a_request_without_rights_gets_what_was_granted_as_soon_as_the_registry_is_down() -> None:
    """A challenge would be of no use: its token server may be down, too. Nobody else has to notice that first."""
    async with granted() as host:
        assert await host.status(host.image.digest) == 401  # so it is known how the registry challenges
        host.registry.status = 503
        await until_served(host, host.image.digest)
        assert {each for _, each in host.registry.asked} == {ALICE}


async def test_so_it_is_with_a_tag_that_the_registry_resolves() -> None:
    async with granted(resolver=UpstreamResolver(tag_ttl=1000)) as host:
        assert await host.status("v1") == 401
        host.registry.status = 503
        await until_served(host, "v1")


async def test_so_it_is_while_only_the_token_server_is_down(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[str] = []

    async def give_token(request: Request) -> Response:
        asked.append(str(request.url.query))
        return Response(status_code=401 if "authorization" in request.headers else 200)

    async with AsyncExitStack() as token_server:
        url = await token_server.enter_async_context(served(Starlette(routes=[Route("/token", give_token)])))
        challenge = f'Bearer realm="{url}/token",service="registry.example"'
        async with running(rights={"outage": "remembered", "ttl": 1e-6}, challenge=challenge) as host:
            assert await host.status(host.image.digest) == 401
            assert await host.status(host.image.digest, rights=ALICE) == 200
            assert await host.status(host.image.digest) == 401
            assert set(asked) == {"service=registry.example"}
            await token_server.aclose()
            await until_served(host, host.image.digest)
            assert await host.status(host.image.digest, rights=BOB) == 403  # the registry knows
    assert "the token server of" in caplog.text


async def until_served(host: Host, digest: str) -> None:
    """Wait until a request without rights is answered: the last answer of the registry may be some seconds old."""
    async with asyncio.timeout(60):
        while (status := await host.status(digest)) == 401:  # noqa: ASYNC110 - each question can change the answer
            await asyncio.sleep(0.05)
    assert status == 200


async def test_a_registry_that_answers_is_not_forgotten_for_invented_ones() -> None:
    """Anybody can ask for names that a wildcard covers."""
    there = {"real.corp"}

    async def check(registry: str) -> Unreachable | None:
        return None if registry in there else Unreachable("no answer")

    clock = Clock()
    async with Tasks() as tasks:
        outages = Outages(check, tasks, logging.getLogger("peili.test"), clock)
        assert await outages.find("real.corp", clock.now) is None
        for number in range(300):
            await outages.find(f"{number}.corp", clock.now)
        there.clear()
        clock.now += 10
        assert await outages.find("real.corp", clock.now) is not None
