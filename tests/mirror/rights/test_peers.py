"""A host gives covered content only to hosts that have proven who they are, and that say that they have checked."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.requests import HTTPConnection
from tests.mirror.doors.in_memory_host import client_for
from tests.mirror.rights.hosts import ALICE, BOB, Host, add_image, running
from tests.support.waiting import until

from peili.mirror import Digest, Peer, serve
from peili.mirror.peer_api.received import received_path

pytestmark = pytest.mark.anyio


def name_it(_: HTTPConnection) -> str:
    return "peer-1"


PROVEN: dict[str, Any] = {"auth": name_it}
UNPROVEN: dict[str, Any] = {"insecure": True}
IN_FLIGHT = {"Peili-In-Flight": "1"}
DATA = bytes(range(256)) * 100
DIGEST = Digest.of(DATA)


async def ask(host: Host, method: str, path: str, headers: dict[str, str] | None = None) -> int:
    async with client_for(host.mirror.peer) as client:
        return (await client.request(method, path, headers=headers)).status_code


def path(host: Host, name: str, *, checked: bool = False) -> str:
    return f"/v2/{name}?ns={host.registry.name}{'&checked=1' if checked else ''}"


@pytest.mark.parametrize(("options", "told"), [(PROVEN, 200), (UNPROVEN, 404)])
async def test_covered_content_is_only_for_hosts_that_are_known_and_have_checked(
    options: dict[str, Any], told: int
) -> None:
    async with running(**options) as host:
        host.tag("free/app", host.free_image)
        for name in (f"team/app/blobs/{host.secret.digest}", f"team/app/manifests/{host.image.digest}"):
            for method in ("GET", "HEAD"):
                assert await ask(host, method, path(host, name)) == 404
                assert await ask(host, method, path(host, name, checked=True)) == told
        for key in (host.secret.digest, host.image.digest, f"{host.registry.name}/team/app:v1"):
            assert await ask(host, "HEAD", f"/_router/keys/{key}") == told
        assert await ask(host, "GET", path(host, "team/app/manifests/v1")) == 404
        assert await ask(host, "GET", path(host, "team/app/manifests/v1", checked=True)) == told
        assert await ask(host, "HEAD", path(host, "team/app/manifests/v1")) == told
        assert await ask(host, "GET", path(host, "team/app/tags/list")) == told
        assert await ask(host, "GET", received_path(host.secret.digest)) == told
        for name in (f"free/app/blobs/{host.shared.digest}", "free/app/manifests/v1", "free/app/tags/list"):
            assert await ask(host, "GET", path(host, name)) == 200
        for key in (host.shared.digest, host.free_image.digest, f"{host.registry.name}/free/app:v1"):
            assert await ask(host, "HEAD", f"/_router/keys/{key}") == 200
        assert await ask(host, "GET", received_path(host.shared.digest)) == 200


async def test_content_is_not_open_because_it_is_asked_for_under_the_name_of_an_open_repository() -> None:
    async with running(**UNPROVEN) as host:
        for _ in range(2):
            assert await ask(host, "GET", path(host, f"free/app/blobs/{host.secret.digest}")) == 404
        assert await host.status(host.secret.digest, "free/app", rights=BOB) == 404
        assert await ask(host, "GET", path(host, f"free/app/blobs/{host.secret.digest}")) == 404


@pytest.mark.parametrize(
    ("before", "later", "status"),
    [
        (["free/app"], [], 200),
        (["team/app"], [], 404),
        (["free/app", "team/app"], [], 404),
        (["free/app"], ["team/app"], 404),
        ([], [], 404),
        ([], ["free/app"], 404),  # a request that comes later does not say for whom it arrives
    ],
)
async def test_what_is_arriving_belongs_to_the_repositories_that_it_was_requested_for(
    before: list[str], later: list[str], status: int
) -> None:
    async with running(**UNPROVEN) as host:
        for name in before:
            assert await host.status(DIGEST, name) in {401, 404}
        ingest = host.store.begin(DIGEST, len(DATA))
        ingest.write(DATA[:1000])
        if not before:
            await until(lambda: has_seen(host, DIGEST))
        for name in later:
            assert await host.status(DIGEST, name) in {401, 404}
        for key in (f"/_router/keys/{DIGEST}", path(host, f"free/app/blobs/{DIGEST}")):
            assert await ask(host, "HEAD", key, IN_FLIGHT) == status
        ingest.write(DATA[1000:])
        ingest.commit()
        for key in (f"/_router/keys/{DIGEST}", path(host, f"free/app/blobs/{DIGEST}")):
            assert await ask(host, "HEAD", key) == status


def has_seen(host: Host, digest: Digest) -> bool:
    """Return whether the host has noticed that `digest` arrives without a request."""
    gate = host.mirror._gate  # pyright: ignore[reportPrivateUsage]
    return gate is not None and digest in gate.repositories._unexplained  # pyright: ignore[reportPrivateUsage]


@asynccontextmanager
async def pair(**options: Any) -> AsyncGenerator[tuple[Host, Host]]:
    """Yield two hosts with one registry. The first one has the images, the second one is empty and knows the first."""
    async with running(**PROVEN) as first:
        second = Host(first.registry, is_empty=True, **{"rights": {}, **PROVEN, **options})
        async with (
            serve(first.mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving,
            second.mirror,
        ):
            second.router.set([Peer("first", (f"http://{serving.peer_addresses[0]}",))])
            await second.mirror.wait_ready(30)
            yield first, second


async def test_a_host_that_was_granted_an_image_gets_it_from_its_peer_and_another_one_does_not() -> None:
    async with pair() as (first, second):
        assert await second.status(first.image.digest) == 401
        assert await second.status(first.image.digest, rights=BOB) == 403
        assert await second.status(first.secret.digest, "free/app", rights=BOB) == 404
        assert await second.status(first.secret.digest, "free/app") == 404
        answer = await second.get(first.image.digest, rights=ALICE)
        assert answer.status_code == 200
        answer = await second.get(first.secret.digest, rights=ALICE)
        assert (answer.status_code, answer.content) == (200, b"secret")
        asked = [where for where, _ in first.registry.asked if str(first.secret.digest) in where]
        assert not asked  # the manifest that was relayed has said that the layer belongs to it


async def test_a_host_that_does_not_check_gets_nothing_covered() -> None:
    async with pair(rights=None) as (first, second):
        first.tag("free/app", first.free_image)
        for digest in (first.image.digest, first.secret.digest):
            assert await second.status(digest, rights=ALICE) == 404
            assert await second.status(digest, "free/app") == 404
        assert await second.status(first.shared.digest, "free/app") == 200


async def test_an_image_is_whole_only_if_all_of_it_is_given() -> None:
    """Podman, which names the registry in the path, must not get a manifest whose layers it would not get."""
    async with pair() as (first, second):
        first.tag("free/app", first.free_image)
        first.registry.content["free/app"] = set()
        both = add_image(second.store, first.free, first.secret, config=b"{  }")
        second.store.add(b"secret")
        config = Digest.of(b"{  }")
        path_of_manifest = f"/v2/{first.registry.name}/free/app/manifests/{both.digest}"
        async with client_for(second.mirror.local) as client:
            assert (await client.get(path_of_manifest, headers={"Authorization": BOB})).status_code == 404
            first.registry.content["free/app"] = {both.digest, first.free.digest, first.secret.digest, config}
            assert (await client.get(path_of_manifest, headers={"Authorization": BOB})).status_code == 200
            first.store.remove(first.free.digest)
            assert (await client.get(path_of_manifest, headers={"Authorization": BOB})).status_code == 404


@pytest.mark.parametrize(("requested_for", "status"), [("team/app", 404), ("free/other", 200)])
async def test_requests_share_a_transfer_only_if_both_may_have_it(requested_for: str, status: int) -> None:
    async with running(**UNPROVEN) as host:
        await host.status(DIGEST, requested_for)
        incoming = host.mirror._incoming  # pyright: ignore[reportPrivateUsage]
        tap = incoming.open_tap(DIGEST)  # as a transfer for this request would do
        tap.read_from(lambda: ("first",), size=len(DATA), needs_ring=True)
        tap.write(0, memoryview(DATA))
        assert await host.status(DIGEST, "free/app", rights=BOB) == status
        tap.close(is_abandoned=False, is_expected=False)
