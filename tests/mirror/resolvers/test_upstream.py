"""The resolver ``upstream``: the registry decides what a tag means, and peers only while it does not answer."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from starlette.types import Receive, Scope, Send
from tests.mirror.doors.in_memory_host import client_for
from tests.mirror.resolvers.registry_cluster import (
    BEARER,
    LIMITS,
    NEW,
    OLD,
    PATH,
    TOKEN,
    V1,
    Registry,
    cluster,
    cover_demo,
    single_host,
)
from tests.mirror.upstream.registries import DIGEST, HEADERS, MANIFEST, SmallRegistry
from tests.support.neighbours import refusing_url, served
from tests.support.plain_http import plain_client
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import (
    AuthorizationRequired,
    ConfigError,
    Descriptor,
    Digest,
    Limits,
    Mirror,
    Peer,
    PushRouter,
    Reference,
    Requester,
)
from peili.mirror.resolvers import UpstreamResolver
from peili.mirror.testing import ResolverSubject, check_options, check_resolver
from peili.mirror.tls.identities import PEER_NAMES
from peili.mirror.upstream.api_roots import ApiRoot
from peili.mirror.upstream.challenges import Challenge
from peili.mirror.upstream.client import UpstreamClient
from peili.mirror.upstream.exchanges import USER_AGENT
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


class Subject(ResolverSubject):
    def __init__(self, registry: Registry) -> None:
        self.resolver = UpstreamResolver()
        self.registry = registry
        self.tags: list[str] = []

    @override
    async def know(self, reference: Reference) -> Descriptor | None:
        data = b'{"schemaVersion": 2, "of": "%s"}' % str(reference).encode()
        path = f"/v2/{reference.repository}/manifests/{reference.tag}"
        headers = {**HEADERS, "Docker-Content-Digest": Digest.of(data)}
        self.registry.answers[path] = (200, headers, data)
        self.tags.append(reference.tag)
        listed = json.dumps({"tags": self.tags}).encode()
        self.registry.answers[f"/v2/{reference.repository}/tags/list"] = (200, {}, listed)
        return Descriptor(HEADERS["Content-Type"], Digest.of(data), len(data))


async def test_the_resolver_keeps_every_promise() -> None:
    registry = Registry()

    async with served(registry) as url:

        @asynccontextmanager
        async def factory() -> AsyncGenerator[ResolverSubject]:
            async with UpstreamClient(roots=lambda _: [ApiRoot.of(url)]) as client:
                subject = Subject(registry)
                subject.upstream = client
                yield subject

        await check_resolver(factory)


def test_the_options_are_checked() -> None:
    check_options(UpstreamResolver, {"tag_ttl": 5, "immutable": ["v\\d+"]})
    for wrong in ({"tag_ttl": 0}, {"immutable": ["("]}):
        with pytest.raises(ConfigError):
            UpstreamResolver.from_config(wrong)


async def test_a_moved_tag_is_seen_although_hosts_have_the_old_image() -> None:
    async with cluster(2, tag_ttl=0.001) as made:
        one, other = made.hosts
        old = made.registry.move(OLD)
        for each in made.hosts:
            each.have(OLD)
        assert await one.digest() == old
        other.store.add(NEW)
        new = made.registry.move(NEW)
        response = await one.ask(method="GET")
        assert (response.headers["docker-content-digest"], response.content) == (new, NEW)  # from the other host
        assert "warning" not in response.headers


async def test_an_answer_is_used_for_tag_ttl_and_by_all_who_wait_for_it() -> None:
    async with cluster(1, tag_ttl=1000) as made:
        (host,) = made.hosts
        host.have(OLD)
        old = made.registry.move(OLD)
        made.registry.open.clear()
        asking = [asyncio.create_task(host.digest()) for _ in range(5)]
        await until(lambda: bool(made.registry.asked))
        made.registry.open.set()
        assert await asyncio.gather(*asking) == [old] * 5
        made.registry.move(NEW)
        assert await host.digest() == old
        assert made.registry.heads == 1
        assert host.mirror.status()["upstream_requests"] == len(made.registry.asked)


async def test_the_runtime_gets_the_challenge_of_the_registry_and_its_token_is_used() -> None:
    async with cluster(1) as made:
        (host,) = made.hosts
        host.have(OLD)
        made.registry.answers["/v2/"] = made.registry.default = (401, {"WWW-Authenticate": str(BEARER)}, b"")
        response = await host.ask()
        expected = BEARER.for_repository("acme/demo")
        assert (response.status_code, response.headers["www-authenticate"]) == (401, str(expected))
        assert made.registry.heads == 0  # the challenge costs no request that counts
        old = made.registry.move(OLD)
        response = await host.ask(Authorization="Bearer right")
        assert response.headers["docker-content-digest"] == old
        assert made.registry.asked[-1] == ("HEAD", PATH, "Bearer right")


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [(401, "invalid_token", 401), (401, "insufficient_scope", 404), (401, "", 404), (403, "", 404)],
)
async def test_a_token_that_the_registry_refuses_leads_there(status: int, error: str, expected: int) -> None:
    async with cluster(1) as made:
        challenge = Challenge("Bearer", {**BEARER.parameters, **({"error": error} if error else {})})
        made.registry.default = (status, {"WWW-Authenticate": str(challenge)}, b"")
        response = await made.hosts[0].ask(Authorization="Bearer wrong")
        assert response.status_code == expected
        assert ("www-authenticate" in response.headers) == (expected == 401)


@pytest.mark.parametrize("status", [429, 503])
async def test_while_the_registry_is_down_the_last_answer_counts(status: int, caplog: pytest.LogCaptureFixture) -> None:
    async with cluster(2, tag_ttl=0.001) as made:
        one, other = made.hosts
        old = made.registry.move(OLD)
        assert await one.digest() is None  # nobody has the content
        for each in made.hosts:
            each.store.add(OLD)
        made.registry.go_down(status)
        with caplog.at_level(logging.INFO, "peili"):
            for each in made.hosts:  # the other host asks the first one
                response = await each.ask()
                assert response.headers["docker-content-digest"] == old
                assert response.headers["warning"] == '110 - "Response is Stale", 111 - "Revalidation Failed"'
            assert [line for line in caplog.messages if "answered with" in line and "does not answer" in line]
            made.registry.answers["/v2/"] = (200, {}, b"")
            new = made.registry.move(NEW)
            one.store.add(NEW)
            response = await one.ask()
            assert response.headers["docker-content-digest"] == new
            assert "warning" not in response.headers
        assert any("answers again" in line for line in caplog.messages)
        assert other.mirror.metrics.upstream_requests.value("base", "unreachable") == 1


async def test_without_a_memory_the_newest_image_counts() -> None:
    async with cluster(3) as made:
        made.registry.go_down()
        one, other, third = made.hosts
        other.have(OLD)
        third.have(OLD)
        assert await one.digest() == Digest.of(OLD)
        newest = other.have(NEW)
        one.store.add(NEW)
        assert await one.digest() == newest


async def test_a_slow_registry_counts_as_down() -> None:
    limits = Limits(upstream_timeout=0.2, lookup_timeout=10, first_byte_timeout=20)
    async with cluster(1, limits=limits) as made:
        (host,) = made.hosts
        old = host.have(OLD)
        made.registry.open.clear()
        response = await host.ask(Authorization="Bearer right")
        assert response.headers["docker-content-digest"] == old
        assert "warning" in response.headers


async def test_outages_are_found_within_the_time_of_the_door_whatever_upstream_timeout_is() -> None:
    limits = Limits(upstream_timeout=6, lookup_timeout=2, first_byte_timeout=6)
    async with cluster(1, limits=limits) as made:
        (host,) = made.hosts
        old = host.have(OLD)
        made.registry.open.clear()
        response = await host.ask(Authorization="Bearer right")
        assert response.headers.get("docker-content-digest") == old
        assert "warning" in response.headers


async def test_requesters_that_keep_this_host_busy_bring_no_old_tag_back() -> None:
    """Their questions take all slots of a registry that answers. The others get no guess."""

    class HalfSilent(Registry):
        @override
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if "silent" in scope["path"]:
                self.asked.append((scope["method"], scope["path"], None))
                await asyncio.Event().wait()
            await super().__call__(scope, receive, send)

    limits = Limits(upstream_requests=1, upstream_timeout=3, lookup_timeout=10, first_byte_timeout=60)
    async with cluster(1, limits=limits, registry=HalfSilent()) as made:
        (host,) = made.hosts
        host.have(OLD)
        host.store.add(NEW)
        new = made.registry.move(NEW)
        at_work = [asyncio.create_task(host.ask(f"silent-{n}")) for n in range(8)]
        await until(lambda: any("silent" in path for _, path, _ in made.registry.asked))
        for response in await asyncio.gather(*(host.ask() for _ in range(4))):
            assert response.headers.get("docker-content-digest", new) == new
            assert "warning" not in response.headers
        await asyncio.gather(*at_work)


async def test_what_nobody_knows_is_left_to_the_runtime() -> None:
    async with cluster(2) as made:
        made.registry.go_down()
        assert (await made.hosts[0].ask()).status_code == 404


async def test_an_error_does_not_say_that_there_is_a_guess() -> None:
    async with cluster(1, tag_ttl=0.001) as made:
        (host,) = made.hosts
        made.registry.move(OLD)
        assert (await host.ask()).status_code == 404  # nobody has the content
        made.registry.go_down()
        response = await host.ask()
        assert response.status_code == 404
        assert "warning" not in response.headers


async def test_a_tag_that_the_registry_deleted_is_forgotten() -> None:
    async with cluster(1, tag_ttl=0.001) as made:
        (host,) = made.hosts
        host.store.add(OLD)
        made.registry.move(OLD)
        assert await host.digest() is not None
        del made.registry.answers[PATH]
        assert (await host.ask()).status_code == 404
        made.registry.go_down()
        assert (await host.ask()).status_code == 404


async def test_an_immutable_tag_is_not_asked_for_if_a_peer_has_it() -> None:
    async with cluster(2, immutable=["v\\d+"]) as made:
        one, other = made.hosts
        new = made.registry.move(NEW)
        one.store.add(NEW)
        assert await one.digest() == new  # nobody here has an image of that name
        old = other.have(OLD)
        assert await other.digest() == old
        assert made.registry.heads == 1
        made.registry.move(NEW, "latest")
        other.store.add(NEW)
        other.have(OLD, Reference.parse("registry.example/acme/demo:latest"))
        assert await other.digest("latest") == new


async def test_a_host_says_nothing_about_covered_repositories_to_strangers() -> None:
    async with cluster(2) as made:
        one, _ = made.hosts
        one.have(OLD)
        peer: Peer = one.mirror.identity
        async with plain_client(base_url=peer.urls[0]) as client:
            ask = {"reference": str(V1)}
            assert (await client.get("/_resolver/v1/tag", params=ask)).json()["image"]["digest"] == Digest.of(OLD)
            cover_demo(one)
            assert (await client.get("/_resolver/v1/tag", params=ask)).status_code == 404
            assert (await client.get("/_resolver/v1/tag", params={"reference": "x"})).status_code == 400


@pytest.mark.parametrize("names", [frozenset({"node-1.example"}), frozenset({"peili:node-1"})])
async def test_a_host_that_has_shown_a_certificate_is_told_what_a_covered_tag_means(names: frozenset[str]) -> None:
    """Its certificate need not show an id."""
    async with cluster(1) as made:
        (host,) = made.hosts
        host.have(OLD)
        cover_demo(host)

        async def proven(scope: Scope, receive: Receive, send: Send) -> None:
            await host.mirror.peer({**scope, PEER_NAMES: names}, receive, send)

        async with client_for(proven) as client:
            answer = await client.get("/_resolver/v1/tag", params={"reference": str(V1)})
        assert answer.json()["image"]["digest"] == Digest.of(OLD)


async def test_a_question_of_a_peili_is_not_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise, a mirror that is configured as its own registry would ask itself again and again."""
    async with cluster(1) as made:
        (host,) = made.hosts
        host.store.add(OLD)
        made.registry.move(OLD)
        assert (await host.ask(**{"User-Agent": USER_AGENT})).status_code == 404
        assert made.registry.asked == []
        assert any("leave this door out" in line for line in caplog.messages)
        assert await host.digest() is not None


@pytest.mark.parametrize("is_named", [False, True])
async def test_a_registry_on_this_host_that_nobody_has_named_is_left_to_the_runtime(is_named: bool) -> None:
    """Its name means another registry on each host."""
    registry = SmallRegistry()
    async with served(registry) as url:
        name = url.removeprefix("http://")
        store = MemoryStore()
        store.tag(Reference(name, "acme/demo", "v1"), store.add(MANIFEST))
        mirror = Mirror(
            store, PushRouter(), UpstreamResolver(), registries=["registry.example", name] if is_named else []
        )
        async with mirror, client_for(mirror.local) as client:
            response = await client.head("/v2/acme/demo/manifests/v1", params={"ns": name})
        assert response.status_code == (200 if is_named else 404)
        assert bool(registry.asked) is is_named


async def test_without_a_mirror_nothing_is_known() -> None:
    resolver = UpstreamResolver()
    assert await resolver.resolve(V1) is None


async def test_an_unreachable_registry_never_raises() -> None:
    async with single_host("alone", refusing_url(), LIMITS, {}) as host:
        assert await host.resolver.resolve(V1) is None
        assert await host.resolver.resolve_for(V1, TOKEN) is None
        assert host.have(MANIFEST) == DIGEST
        resolution = await host.resolver.resolve_for(V1, TOKEN)
        assert resolution is not None
        assert resolution.warning is not None


async def test_a_required_authorization_is_raised_for_the_door() -> None:
    async with cluster(1) as made:
        made.registry.answers["/v2/"] = (401, {"WWW-Authenticate": str(BEARER)}, b"")
        resolver = made.hosts[0].resolver
        with pytest.raises(AuthorizationRequired):
            await resolver.resolve_for(V1, Requester())
        assert await resolver.resolve(V1) is None


@pytest.mark.parametrize("tag_ttl", [1000, 1_000_000])
async def test_hosts_that_share_tags_ask_the_registry_once(tag_ttl: float) -> None:
    async with cluster(4, tag_share=True, tag_ttl=tag_ttl) as made:
        await until(lambda: len({each.home for each in made.hosts}) == 1)
        old = made.registry.move(OLD)
        for each in made.hosts:
            each.store.add(OLD)
        assert await asyncio.gather(*(each.digest() for each in made.hosts)) == [old] * 4
        assert made.registry.heads == 1
        made.registry.move(NEW)
        assert await asyncio.gather(*(each.digest() for each in made.hosts)) == [old] * 4
        assert made.registry.heads == 1


async def test_a_host_that_asks_for_all_and_gets_no_answer_lets_the_next_one_ask() -> None:
    async with cluster(3, tag_share=True) as made:
        await until(lambda: len({each.home for each in made.hosts}) == 1)
        assert [await each.digest() for each in made.hosts] == [None] * 3
        old = made.registry.move(OLD)
        for each in made.hosts:
            each.store.add(OLD)
        assert [await each.digest() for each in made.hosts] == [old] * 3
        assert made.registry.heads == 3 + 1


async def test_covered_repositories_are_not_shared() -> None:
    async with cluster(2, tag_share=True) as made:
        made.registry.move(OLD)
        for each in made.hosts:
            cover_demo(each)
            await each.digest()
        assert made.registry.heads == 2
        peer = made.hosts[0].mirror.identity
        async with plain_client(base_url=peer.urls[0]) as client:
            ask = {"reference": str(V1), "within": "30"}
            assert (await client.get("/_resolver/v1/shared-tag", params=ask)).status_code == 404


@pytest.mark.parametrize("within", ["", "x", "0", "nan", "1e13"])
async def test_a_malformed_question_of_a_host_is_refused(within: str) -> None:
    async with single_host("alone", refusing_url(), LIMITS, {"tag_share": True}) as host:
        peer = host.mirror.identity.urls[0]
        ask = {"reference": str(V1), "within": within}
        assert (await host.client.get(f"{peer}/_resolver/v1/shared-tag", params=ask)).status_code == 400
        told = {"reference": str(V1), "told": within or "[]"}
        assert (await host.client.post(f"{peer}/_resolver/v1/told-tag", params=told)).status_code == 400
