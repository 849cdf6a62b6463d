"""The local door gives covered images only to those who may pull them from the registry."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from tests.mirror.doors.in_memory_host import client_for
from tests.mirror.rights.hosts import ALICE, BASIC, BOB, add_image, has_arrived, pair, running
from tests.mirror.rights.registry import REALM, token
from tests.support.neighbours import served
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Descriptor, Digest, Limits, Reference, Resolver
from peili.mirror.oci.references import OCI_INDEX, OCI_MANIFEST
from peili.mirror.resolvers import DeferResolver, LocalResolver, PeersResolver, UpstreamResolver
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


async def test_a_request_without_rights_is_told_where_to_get_them() -> None:
    async with running() as host:
        for digest in (host.image.digest, "v1", host.secret.digest):
            answer = await host.get(digest)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == (
                f'Bearer realm="{REALM}",service="registry.example",scope="repository:team/app:pull"'
            )
            assert answer.json()["errors"][0]["code"] == "UNAUTHORIZED"
        assert host.registry.asked == []


@pytest.mark.parametrize("resolver", [LocalResolver, PeersResolver, DeferResolver, UpstreamResolver])
@pytest.mark.parametrize("is_empty", [False, True])
@pytest.mark.parametrize("outage", ["deny", "remembered"])
async def test_nobody_without_rights_finds_out_whether_hosts_here_know_a_tag(
    resolver: type[Resolver], is_empty: bool, outage: str
) -> None:
    strangers = (None, BOB, "Bearer opaque", f"Bearer {token('alice', exp=1.0)}", None)
    async with running(resolver=resolver(), is_empty=is_empty, rights={"outage": outage}) as host:
        assert [await host.status("v1", rights=each) for each in strangers] == [401, 403, 403, 401, 401]
        rightful = await host.status("v1", rights=ALICE)
        assert rightful == (404 if is_empty or resolver is DeferResolver else 200)
        assert await host.status(host.image.digest, rights=ALICE) == (404 if is_empty else 200)
        assert len([each for each in host.registry.asked if each[1] == ALICE]) <= 1
        if outage == "deny" or is_empty:
            host.registry.status = 503
            assert [await host.status(tag, rights=BOB) for tag in ("v1", "v2")] == [404, 404]


async def test_a_tag_of_a_registry_that_demands_nothing_is_known_to_everybody() -> None:
    async with running(challenge=None) as host:
        assert await host.status("v1") == 200
        answer = await host.get("v1", "team/other")
        assert answer.status_code == 404


async def test_a_request_without_rights_for_a_tag_is_challenged_before_anybody_is_asked_what_it_means() -> None:
    asked: list[Reference] = []

    class Noting(LocalResolver):
        @override
        async def resolve(self, reference: Reference) -> Descriptor | None:
            asked.append(reference)
            return await super().resolve(reference)

    async with running(resolver=Noting()) as host:
        assert [await host.status("v1") for _ in range(2)] == [401, 401]
        assert (asked, host.registry.asked, host.registry.bases) == ([], [], 1)
        assert await host.status("v1", rights=ALICE) == 200
        assert len(asked) == 1


async def test_the_registry_is_asked_once_about_a_manifest_and_all_that_it_refers_to() -> None:
    async with running() as host:
        assert await host.status(host.image.digest, rights=ALICE) == 200
        assert host.registry.asked == [(f"/v2/team/app/manifests/{host.image.digest}", ALICE)]
        layers = (host.secret.digest, host.shared.digest, Digest.of(b"{}"))
        assert [await host.status(each, rights=ALICE) for each in (*layers, host.image.digest, "v1")] == [200] * 5
        assert len(host.registry.asked) == 1


async def test_an_answer_to_the_resolver_counts_for_all_that_the_tag_refers_to() -> None:
    async with running(resolver=UpstreamResolver(tag_ttl=1000)) as host:
        assert await host.status("v1") == 401
        assert await host.status("v1", rights=ALICE) == 200
        layers = (host.secret.digest, host.shared.digest, Digest.of(b"{}"))
        assert [await host.status(each, rights=ALICE) for each in (*layers, host.image.digest, "v1")] == [200] * 5
        assert host.registry.asked == [("/v2/team/app/manifests/v1", ALICE)]
        # What the tag means is remembered for everybody, but not who may read it.
        assert [await host.status("v1", rights=each) for each in (None, BOB)] == [401, 403]
        assert await host.status(host.image.digest, "team/other", rights=ALICE) == 403


async def test_what_the_resolver_guesses_is_no_grant() -> None:
    async with running(resolver=UpstreamResolver(tag_ttl=1e-6)) as host:
        assert await host.status("v1", rights=ALICE) == 200
        host.registry.status = 503
        assert await host.status("v1", rights=BOB) == 404
        host.registry.status = None
        async with asyncio.timeout(60):
            while await host.status(host.image.digest, rights=BOB) != 403:  # noqa: ASYNC110 - it was down just now
                await asyncio.sleep(0.05)


async def test_a_layer_alone_is_asked_about_once_also_if_it_is_requested_many_times_at_once() -> None:
    async with running() as host:
        answers = await asyncio.gather(*(host.status(host.secret.digest, rights=ALICE) for _ in range(8)))
        assert answers == [200] * 8
        assert host.registry.asked == [(f"/v2/team/app/blobs/{host.secret.digest}", ALICE)]


@pytest.mark.parametrize("rights", [BOB, f"Bearer {token('mallory')}", "Bearer opaque", "Digest x=y"])
async def test_other_rights_are_refused_without_a_challenge(rights: str) -> None:
    async with running() as host:
        assert await host.status(host.image.digest, rights=ALICE) == 200
        for digest in (host.image.digest, "v1", host.secret.digest):
            answer = await host.get(digest, rights=rights)
            assert answer.status_code == 403
            assert "WWW-Authenticate" not in answer.headers


async def test_the_grant_of_one_repository_is_none_for_another() -> None:
    async with running() as host:
        host.tag("team/other", host.image)
        assert await host.status(host.image.digest, rights=ALICE) == 200
        assert await host.status(host.image.digest, "team/other", rights=ALICE) == 403
        assert await host.status(host.secret.digest, "team/other", rights=ALICE) == 403


async def test_a_token_that_has_expired_is_challenged_and_its_grants_end_with_it() -> None:
    expired, short = (f"Bearer {token('alice', exp=time.time() + seconds)}" for seconds in (-1, 1.5))
    async with running() as host:
        assert (await host.get(host.image.digest, rights=expired)).status_code == 401
        host.registry.rights[short] = {"team/app"}
        assert await host.status(host.image.digest, rights=short) == 200
        del host.registry.rights[short]
        await until(lambda: host.registry.asked[-1][1] == short and len(host.registry.asked) == 2)

        async def is_over() -> bool:
            return (await host.get(host.secret.digest, rights=short)).status_code == 401

        async with asyncio.timeout(60):
            while not await is_over():  # noqa: ASYNC110 - the token itself says when
                await asyncio.sleep(0.05)


async def test_a_remembered_answer_is_used_for_a_time_and_an_opaque_token_can_expire() -> None:
    async with running(rights={"ttl": 0.3}) as host:
        host.registry.rights["Bearer opaque"] = {"team/app"}
        assert await host.status(host.image.digest, rights="Bearer opaque") == 200
        host.registry.rights.clear()
        async with asyncio.timeout(60):
            while (answer := await host.get(host.image.digest, rights="Bearer opaque")).status_code == 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert answer.status_code == 401  # it was good, so its time is over


async def test_what_the_registry_does_not_have_is_not_there() -> None:
    async with running() as host:
        host.registry.content["team/app"].clear()
        assert await host.status(host.image.digest, rights=ALICE) == 404


async def test_a_password_is_passed_on_and_forgotten() -> None:
    async with running(challenge='Basic realm="x"') as host:
        answer = await host.get(host.image.digest)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="x"')
        assert await host.status(host.image.digest, rights=BASIC) == 200
        assert await host.status(host.secret.digest, rights=BASIC) == 200
        assert host.registry.asked == [(f"/v2/team/app/manifests/{host.image.digest}", BASIC)]
        assert await host.status(host.image.digest, rights=BASIC[:-4]) == 403


async def test_a_password_is_neither_asked_for_nor_passed_on_if_that_is_forbidden() -> None:
    async with running(challenge='Basic realm="x"', rights={"basic": False}) as host:
        assert await host.status(host.image.digest) == 403
        assert await host.status(host.image.digest, rights=BASIC) == 403
        assert host.registry.asked == []


async def test_a_forbidden_password_is_not_passed_on_for_images_that_are_not_covered_either() -> None:
    async with running(challenge='Basic realm="x"', rights={"basic": False}, resolver=UpstreamResolver()) as host:
        host.registry.rights[BASIC].add("free/app")
        assert await host.status("v1", "free/app", rights=BASIC) == 403
        assert await host.status(host.secret.digest, "free/app", rights=BASIC) in {403, 404}
        assert [rights for _, rights in host.registry.asked if rights] == []


async def test_an_error_does_not_say_what_a_covered_tag_means() -> None:
    async with running() as host:
        host.registry.content["team/app"].clear()
        answer = await host.get("v1", rights=ALICE)
        assert answer.status_code == 404
        assert "sha256:" not in answer.text


async def test_a_registry_that_demands_nothing_gives_everything_to_everybody() -> None:
    async with running(challenge=None) as host:
        assert await host.status(host.image.digest) == 200
        assert await host.status(host.secret.digest) == 200
        assert host.registry.asked == [(f"/v2/team/app/manifests/{host.image.digest}", None)]


async def test_a_covered_layer_is_not_given_under_the_name_of_an_open_repository() -> None:
    async with running() as host:
        assert await host.status(host.secret.digest, "free/app") == 401  # free/app may have it, too: its registry says
        assert await host.status(host.secret.digest, "free/app", rights=BOB) == 404
        assert await host.status(host.image.digest, "free/app", rights=BOB) == 404
        assert await host.status(host.shared.digest, "free/app", rights=BOB) == 200  # the registry says so


async def test_a_layer_of_an_open_image_is_given_without_a_question() -> None:
    async with running() as host:
        host.tag("free/app", host.free_image)
        for digest in (host.free_image.digest, host.shared.digest, host.free.digest, "v1"):
            assert await host.status(digest, "free/app") == 200
        assert await host.status(host.shared.digest, "free/other") == 200
        assert host.registry.asked == []
        assert await host.status(host.secret.digest, "free/app", rights=BOB) == 404


async def test_a_layer_is_no_longer_given_to_everybody_when_the_open_image_is_gone() -> None:
    async with running() as host:
        host.tag("free/app", host.free_image)
        assert await host.status(host.shared.digest, "free/other") == 200
        host.store.remove(Reference(host.registry.name, "free/app", "v1"))
        host.registry.content["free/app"] = set()
        async with asyncio.timeout(60):
            while await host.status(host.shared.digest, "free/app", rights=BOB) != 404:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_an_index_that_anybody_can_write_opens_nothing_covered() -> None:
    """It names a manifest of somebody else for another platform, so a runtime that pulls it never asks for that one."""
    async with running() as host:
        own = add_image(host.store, host.shared, host.free, config=b"{  }")
        entries = [{"digest": each.digest, "size": each.size} for each in (own, host.image)]
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        host.store.tag(Reference("evil.example", "x", "v1"), host.store.add(json.dumps(document).encode()))
        for digest in (host.secret.digest, host.image.digest):
            assert (await host.get(digest, "x", registry="evil.example")).status_code == 404
        for digest in (host.shared.digest, host.free.digest):
            assert (await host.get(digest, "x", registry="evil.example")).status_code == 200


async def test_a_manifest_that_an_index_has_named_before_is_not_open_when_it_arrives() -> None:
    async with running() as host:
        store, arriving = host.store, MemoryStore()
        secret = store.add(b"of an image that arrives")
        image = add_image(arriving, secret, config=b"{   }")
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{"digest": image.digest, "size": 1}]}
        store.tag(Reference("evil.example", "x", "v1"), store.add(json.dumps(document).encode()))
        assert (await host.get(secret.digest, "x", registry="evil.example")).status_code == 404
        host.registry.content["team/app"].add(image.digest)
        assert await host.status(image.digest, rights=ALICE) == 404  # the runtime gets it from the registry
        assert add_image(store, secret, config=b"{   }") == image
        gate = host.mirror._gate  # pyright: ignore[reportPrivateUsage]
        assert gate is not None
        await until(lambda: image.digest not in gate.manifests._absent)  # pyright: ignore[reportPrivateUsage]
        gate.repositories._read_at = float("-inf")  # pyright: ignore[reportPrivateUsage]
        assert (await host.get(secret.digest, "x", registry="evil.example")).status_code == 404


async def test_a_registry_that_sends_every_request_elsewhere_confirms_nothing() -> None:
    async with running() as host:
        async with served(Starlette(routes=[Route("/login", _log_in)])) as url:
            host.registry.location = f"{url}/login"
            for repository in ("free/app", "free/other"):
                assert await host.status(host.secret.digest, repository, rights=BOB) == 404
            assert await host.status(host.secret.digest, rights=BOB) == 403
        host.registry.location = None
        assert await host.status(host.secret.digest, "free/app", rights=BOB) == 404


async def test_a_page_where_people_log_in_is_no_answer() -> None:
    async with running(challenge=None) as host:
        host.registry.page = b"secret"  # as long as the layer
        for rights in (None, BOB):
            assert await host.status(host.image.digest, rights=rights) == 403
            assert await host.status(host.secret.digest, rights=rights) == 403
        assert await host.status(host.secret.digest, "free/app", rights=BOB) == 404


async def test_what_a_registry_confirmed_is_asked_again_after_a_while() -> None:
    async with running(rights={"ttl": 1e-6}) as host:
        assert await host.status(host.shared.digest, "free/app", rights=BOB) == 200
        host.registry.content["free/app"].discard(host.shared.digest)
        assert await host.status(host.shared.digest, "free/app", rights=BOB) == 404


@pytest.mark.parametrize("is_here", [False, True])
async def test_a_request_without_rights_takes_nothing_from_those_who_pull_an_open_image(is_here: bool) -> None:
    """Podman, which does not go upstream for a layer, would otherwise lose its pull in the middle."""
    async with pair() as (first, second):
        first.tag("free/app", first.free_image)
        if is_here:
            assert await second.status(first.shared.digest, "free/app") == 200
            second.store.add(b"shared")
            await until(lambda: has_arrived(second, first.shared.digest))
        assert await second.status(first.shared.digest) == 401
        assert await second.status(first.shared.digest, "free/app") == 200


@pytest.mark.parametrize("registry", ["evil.example", "localhost:1"])
async def test_a_registry_that_the_operator_has_not_named_is_not_believed(registry: str) -> None:
    async with running() as host:
        answer = await host.get(host.secret.digest, "free/app", registry=registry)
        assert answer.status_code == 404


async def test_another_name_of_the_registry_gives_nothing() -> None:
    async with running() as host:
        assert await host.status(host.image.digest, rights=ALICE) == 200
        host.registry.asked.clear()
        for digest in (host.image.digest, host.secret.digest, "v1"):
            answer = await host.get(digest, rights=ALICE, registry=host.registry.name.replace("127.0.0.1", "localhost"))
            assert answer.status_code == 404
        assert host.registry.asked == []


async def test_a_manifest_gives_no_right_to_what_it_says_to_be_elsewhere() -> None:
    """A registry takes such a manifest also if it does not have the layer."""
    async with running() as host:
        hidden = host.store.add(b"of another covered image")
        image = add_image(host.store, hidden, config=b"{  }")
        host.tag("team/hidden", image)
        layers = [{"digest": hidden.digest, "size": hidden.size, "urls": ["https://elsewhere.example/layer"]}]
        document: dict[str, object] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": layers}
        pushed = host.store.add(json.dumps(document).encode())
        host.tag("team/app", pushed)
        host.registry.content["team/app"].add(pushed.digest)
        async with client_for(host.mirror.local) as client:
            query = f"?ns={host.registry.name}"
            paths = (f"manifests/{pushed.digest}", f"blobs/{hidden.digest}")
            rights = {"Authorization": ALICE}
            answers = [await client.get(f"/v2/team/app/{each}{query}", headers=rights) for each in paths]
        assert [each.status_code for each in answers] == [200, 404]


async def test_content_of_no_image_counts_as_covered() -> None:
    async with running() as host:
        single = host.store.add(b"of no image that this host knows")
        assert await host.status(single.digest, "free/app", rights=BOB) == 404
        host.registry.content["free/app"].add(single.digest)
        assert await host.status(single.digest, "free/app", rights=BOB) == 200


@pytest.mark.parametrize("outage", ["deny", "remembered"])
async def test_what_was_granted_may_be_served_while_the_registry_does_not_answer(outage: str) -> None:
    async with running(rights={"outage": outage, "ttl": 1e-6}) as host:
        assert await host.status(host.image.digest, rights=ALICE) == 200
        host.registry.status = 503
        expected = 200 if outage == "remembered" else 404
        for rights in (ALICE, BOB, f"Bearer {token('new')}"):
            assert await host.status(host.secret.digest, rights=rights) == expected
            assert await host.status(host.image.digest, rights=rights) == expected
        if outage == "remembered":
            assert await host.status("v1") == 200  # no token server answers now
            assert await host.status(host.free.digest, rights=ALICE) == 404  # nobody was granted it
        assert await host.status(host.secret.digest, "free/app", rights=BOB) == 404


@pytest.mark.parametrize("rights", ["Bearer \xe9", f"Bearer {'x' * 20_000}", "Bearer a\tb"])
async def test_a_header_that_no_registry_can_be_asked_with_is_no_outage(rights: str) -> None:
    async with running(rights={"outage": "remembered", "ttl": 1e-6}) as host:
        assert await host.status(host.image.digest, rights=ALICE) == 200
        async with client_for(host.mirror.local) as client:
            path = f"/v2/team/app/manifests/{host.image.digest}?ns={host.registry.name}"
            answer = await client.get(path, headers={b"Authorization": rights.encode("latin-1")})
        assert answer.status_code == 403
        assert (await host.get(host.image.digest)).status_code == 401


@pytest.mark.parametrize("status", [400, 413, 418, 431])
async def test_a_refusal_of_one_request_is_no_outage(status: int) -> None:
    async with running(rights={"outage": "remembered", "ttl": 1e-6}) as host:
        assert await host.status(host.image.digest, rights=ALICE) == 200
        host.registry.status = status
        assert await host.status(host.image.digest, rights=BOB) == 403
        host.registry.status = None
        assert await host.status(host.image.digest, rights=ALICE) == 200


async def test_a_registry_that_answers_again_decides_again() -> None:
    async with running(rights={"outage": "remembered", "ttl": 1e-6}) as host:
        assert await host.status(host.image.digest, rights=ALICE) == 200
        host.registry.status = 503
        assert await host.status(host.image.digest, rights=BOB) == 200
        host.registry.status = None
        async with asyncio.timeout(60):
            while await host.status(host.image.digest, rights=BOB) != 403:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def _log_in(_: Request) -> Response:
    return HTMLResponse("<form>")


async def test_a_registry_that_hangs_delays_only_what_is_covered_and_only_once() -> None:
    async with running(limits=Limits(upstream_timeout=0.5)) as host:
        host.tag("free/app", host.free_image)
        host.registry.open.clear()
        waiting = asyncio.create_task(host.get(host.image.digest, rights=ALICE))
        await until(lambda: len(host.registry.asked) == 1)
        assert await host.status(host.shared.digest, "free/app") == 200
        assert not waiting.done()
        assert (await waiting).status_code == 404
        for digest in (host.image.digest, host.secret.digest, host.shared.digest):
            assert await host.status(digest, rights=ALICE) == 404
        assert len(host.registry.asked) == 1  # a registry that is down is not asked by each request


async def test_decisions_are_counted() -> None:
    async with running() as host:
        host.tag("free/app", host.free_image)
        await host.get(host.image.digest)
        await host.get(host.image.digest, rights=ALICE)
        await host.get(host.secret.digest, rights=ALICE)
        await host.get(host.image.digest, rights=BOB)
        await host.get(host.secret.digest, "free/app", rights=BOB)
        families = {each.name: each.samples for each in host.mirror.figures()}
        counts = {labels[0]: count for labels, count in families["peili_rights_total"].items()}
        assert {name: count for name, count in counts.items() if count} == {
            "challenged": 1,
            "granted": 1,
            "remembered": 1,
            "refused": 1,
            "unconfirmed": 1,
        }


async def test_nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with running(challenge='Basic realm="x"') as host:
        for rights in (BASIC, ALICE, BOB, BASIC[:-4]):
            await host.get(host.image.digest, rights=rights)
        host.registry.status = 500
        await host.get(host.image.digest, rights=BASIC[:-5])
    for secret in (BASIC, ALICE, BOB):
        assert secret.partition(" ")[2][:-6] not in caplog.text


async def test_tags_of_covered_repositories_are_not_listed() -> None:
    async with running() as host:
        host.tag("free/app", host.free_image)
        async with client_for(host.mirror.local) as client:
            for name, status in (("team/app", 404), ("free/app", 200)):
                answer = await client.get(f"/v2/{name}/tags/list?ns={host.registry.name}")
                assert answer.status_code == status
