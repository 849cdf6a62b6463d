"""`tags/list` and `/referrers/` at the local door, with the resolver ``upstream``."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from tests.mirror.resolvers.registry_cluster import BEARER, OLD, Host, Registry, cluster, cover_demo

from peili.mirror import Digest, Reference
from peili.mirror.oci.references import OCI_INDEX, OCI_MANIFEST
from peili.mirror.resolvers.questions import STALE

pytestmark = pytest.mark.anyio

SUBJECT = Digest.of(OLD)
TAGS, REFERRERS = "/v2/acme/demo/tags/list", f"/v2/acme/demo/referrers/{SUBJECT}"
SIGNATURE = {
    "mediaType": OCI_MANIFEST,
    "digest": Digest.of(b"signature"),
    "size": 9,
    "artifactType": "application/vnd.example.signature",
}
SBOM = {"mediaType": OCI_MANIFEST, "digest": Digest.of(b"sbom"), "size": 4, "artifactType": "application/spdx+json"}
BOTH: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [SIGNATURE, SBOM]}
NEVER = 0.001
"""As `tag_ttl`: the registry is asked each time."""


def publish(registry: Registry, path: str, document: object) -> None:
    registry.answers[path] = (200, {"Content-Type": OCI_INDEX}, json.dumps(document).encode())


async def get(host: Host, path: str, authorization: str | None = None, **query: str) -> httpx.Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    return await host.client.get(path, params={"ns": "registry.example", **query}, headers=headers)


async def test_the_tags_of_the_registry_are_listed_in_pages() -> None:
    async with cluster(1, tag_ttl=1000) as made:
        (host,) = made.hosts
        host.have(OLD, Reference.parse("registry.example/acme/demo:only-here"))
        publish(made.registry, TAGS, {"name": "acme/demo", "tags": ["v2", "v1", "not a tag", 7]})
        response = await get(host, TAGS)
        assert response.json() == {"name": "acme/demo", "tags": ["v1", "v2"]}
        assert (await get(host, TAGS, n="1")).json()["tags"] == ["v1"]
        assert [path for _, path, _ in made.registry.asked].count(TAGS) == 1


async def test_the_referrers_of_the_registry_are_listed_and_filtered() -> None:
    async with cluster(1, tag_ttl=1000) as made:
        (host,) = made.hosts
        publish(made.registry, REFERRERS, BOTH)
        response = await get(host, REFERRERS)
        assert (response.headers["content-type"], response.json()) == (OCI_INDEX, BOTH)
        assert "oci-filters-applied" not in response.headers
        response = await get(host, REFERRERS, artifactType="application/spdx+json")
        assert response.json()["manifests"] == [SBOM]
        assert response.headers["oci-filters-applied"] == "artifactType"
        assert [path for _, path, _ in made.registry.asked].count(REFERRERS) == 1


@pytest.mark.parametrize("path", [TAGS, REFERRERS])
async def test_what_the_registry_does_not_have_or_refuses_is_left_to_the_runtime(path: str) -> None:
    async with cluster(1, tag_ttl=NEVER) as made:
        (host,) = made.hosts
        host.have(OLD)
        assert (await get(host, path)).status_code == 404
        made.registry.answers[path] = (403, {}, b"")
        assert (await get(host, path)).status_code == 404
        made.registry.answers[path] = (200, {}, b"no json")
        assert (await get(host, path)).status_code in {200, 404}


@pytest.mark.parametrize("path", [TAGS, REFERRERS])
async def test_the_challenge_and_the_token_pass_through(path: str) -> None:
    async with cluster(1) as made:
        (host,) = made.hosts
        made.registry.answers["/v2/"] = (401, {"WWW-Authenticate": str(BEARER)}, b"")
        response = await get(host, path)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == str(BEARER.for_repository("acme/demo"))
        publish(made.registry, path, {**BOTH, "tags": ["v1"]})
        assert (await get(host, path, "Bearer right")).status_code == 200
        assert made.registry.asked[-1] == ("GET", path, "Bearer right")


async def test_a_list_of_a_covered_repository_is_only_for_who_got_it() -> None:
    async with cluster(2) as made:
        one, other = made.hosts
        for each in made.hosts:
            cover_demo(each)
        publish(made.registry, REFERRERS, BOTH)
        assert (await get(one, REFERRERS, "Bearer right")).json() == BOTH
        made.registry.answers[REFERRERS] = (403, {}, b"")
        assert (await get(one, REFERRERS, "Bearer other")).status_code == 404
        assert (await get(one, REFERRERS, "Bearer right")).json() == BOTH  # within tag_ttl
        made.registry.go_down()
        assert (await get(one, REFERRERS, "Bearer other")).status_code == 404
        assert (await get(other, REFERRERS, "Bearer right")).status_code == 404  # other hosts do not tell
        other.have(OLD)
        assert (await get(one, TAGS, "Bearer right")).status_code == 404


async def test_while_the_registry_is_down_hosts_here_say_what_they_were_told() -> None:
    async with cluster(2, tag_ttl=NEVER) as made:
        one, other = made.hosts
        publish(made.registry, REFERRERS, BOTH)
        assert (await get(one, REFERRERS)).json() == BOTH
        one.have(OLD)
        made.registry.go_down()
        for each in made.hosts:
            response = await get(each, REFERRERS)
            assert (response.json(), response.headers["warning"]) == (BOTH, STALE)
            response = await get(each, TAGS)
            assert (response.json()["tags"], response.headers["warning"]) == (["v1"], STALE)
        unknown = REFERRERS.replace(SUBJECT, Digest.of(b"other"))
        assert (await get(other, unknown)).status_code == 404


async def test_the_peer_door_has_no_referrers() -> None:
    async with cluster(1) as made:
        (host,) = made.hosts
        publish(made.registry, REFERRERS, BOTH)
        url = f"{host.mirror.identity.urls[0]}{REFERRERS}"
        assert (await host.client.get(url, params={"ns": "registry.example"})).status_code == 404
        ask = {"registry": "registry.example", "repository": "acme/demo", "digest": "x"}
        url = f"{host.mirror.identity.urls[0]}/_resolver/v1/referrers"
        assert (await host.client.get(url, params=ask)).status_code == 400
        assert (await host.client.get(url, params={**ask, "digest": SUBJECT})).status_code == 404


async def test_what_is_malformed_in_a_list_hides_nothing_else_of_it() -> None:
    async with cluster(1, tag_ttl=NEVER) as made:
        (host,) = made.hosts
        nested: list[Any] = []
        for _ in range(300):
            nested = [nested]
        odd: list[Any] = [
            None,
            1,
            [],
            {},
            {"digest": 1},
            {"digest": [nested]},
            {**SIGNATURE, "annotations": {"x": nested}},
        ]
        document: dict[str, Any] = {**BOTH, "manifests": [*odd, SBOM]}
        publish(made.registry, REFERRERS, document)
        assert (await get(host, REFERRERS)).json()["manifests"] == [SBOM]
        document = {"tags": [*odd, "v1"]}
        publish(made.registry, TAGS, document)
        assert (await get(host, TAGS)).json()["tags"] == ["v1"]
