"""A host gives covered content only to hosts that have proven who they are, and that say that they have checked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tests.mirror.doors.in_memory_host import client_for
from tests.mirror.rights.hosts import ALICE, BASIC, BOB, PATIENT, PROVEN, Host, add_image, has_arrived, pair, running
from tests.support.waiting import until

from peili.mirror import Digest, Reference
from peili.mirror.content.incoming import Tap
from peili.mirror.oci.references import OCI_INDEX, OCI_MANIFEST
from peili.mirror.peer_api.received import received_path
from peili.mirror.resolvers import PeersResolver, UpstreamResolver

pytestmark = pytest.mark.anyio


UNPROVEN: dict[str, Any] = {"insecure": True}
IN_FLIGHT = {"Peili-In-Flight": "1"}
DATA = bytes(range(256)) * 100
DIGEST = Digest.of(DATA)
LARGE = DATA * 60
"""More than is verified before its first byte is sent."""


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
        (["team/app", "free/app"], [], 404),
        ([], [], 404),
        ([], ["free/app"], 404),  # a request that comes later does not say for whom it arrives
        (["free/app"], ["team/app"], 200),
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
        await until(lambda: has_arrived(host, DIGEST))
        for name in later:
            assert await host.status(DIGEST, name) in {401, 404}
        for key in (f"/_router/keys/{DIGEST}", path(host, f"free/app/blobs/{DIGEST}")):
            assert await ask(host, "HEAD", key, IN_FLIGHT) == status
        ingest.write(DATA[1000:])
        ingest.commit()
        for key in (f"/_router/keys/{DIGEST}", path(host, f"free/app/blobs/{DIGEST}")):
            assert await ask(host, "HEAD", key) == status


@pytest.mark.parametrize(("notes", "is_open"), [([True], True), ([False, False, True], True), ([False], False)])
async def test_what_was_imported_is_not_for_everybody_because_somebody_has_asked_for_it(
    notes: list[bool], is_open: bool
) -> None:
    """Some stores know what was fetched from a registry, a moment later than it is there."""
    async with running(**UNPROVEN) as host:
        store = NotingStore(notes)
        host.store.was_fetched = store.was_fetched  # type: ignore[method-assign]
        assert await host.status(DIGEST, "free/app") == 404
        host.store.add(DATA)
        await until(lambda: has_arrived(host, DIGEST))
        wanted = path(host, f"free/app/blobs/{DIGEST}")
        async with asyncio.timeout(60):
            while (status := await ask(host, "GET", wanted)) != 200 and len(store.notes) > 1:
                pass  # a slow machine notices what has arrived too late to wait for the store
        assert status == (200 if is_open else 404)
        store.notes = [False]  # nobody asks again about what was fetched
        assert await host.status(DIGEST, "free/app", rights=BOB) == (200 if is_open else 404)


async def test_what_was_seen_arriving_or_was_relayed_is_not_imported() -> None:
    async with pair(auth=None, **UNPROVEN) as (first, second):
        second.store.was_fetched = NotingStore([False]).was_fetched  # type: ignore[method-assign]
        assert await second.status(DIGEST, "free/app") == 404
        ingest = second.store.begin(DIGEST, len(DATA))
        ingest.write(DATA[:1000])
        await until(lambda: has_arrived(second, DIGEST))
        ingest.write(DATA[1000:])
        ingest.commit()
        first.tag("free/app", first.free_image)
        assert await second.status(first.free.digest, "free/app") == 200
        second.store.add(b"free")
        await until(lambda: has_arrived(second, first.free.digest))
        for digest in (DIGEST, first.free.digest):
            assert await ask(second, "GET", path(second, f"free/app/blobs/{digest}")) == 200


class NotingStore:
    """What a store has noted about content that was asked for, each time; then the last answer again."""

    def __init__(self, notes: list[bool]) -> None:
        self.notes = list(notes)

    async def was_fetched(self, digest: Digest) -> bool | None:
        return self.notes.pop(0) if len(self.notes) > 1 else self.notes[0]


@pytest.mark.parametrize(
    ("proof", "name", "status"), [(False, "team/app", 404), (True, "team/app", 200), (False, "free/app", 200)]
)
async def test_a_peer_that_waits_gets_nothing_that_then_arrives_for_others(proof: bool, name: str, status: int) -> None:
    """Content was expected for everybody, and then somebody with rights pulls it."""
    limits = replace(PATIENT, claim_timeout=120, wait_timeout=60)
    async with running(**PROVEN, limits=limits) as host:
        host.registry.content["team/app"].add(DIGEST)
        assert await host.status(DIGEST, "free/app", rights=BOB) == 404
        incoming = host.mirror._incoming.get(DIGEST)  # pyright: ignore[reportPrivateUsage]
        assert incoming is not None
        held = asyncio.create_task(ask(host, "GET", path(host, f"free/app/blobs/{DIGEST}", checked=proof), IN_FLIGHT))
        await until(lambda: incoming.needs_ring)
        assert await host.status(DIGEST, name, rights=ALICE) == 404  # the runtime fetches it from the registry
        ingest = host.store.begin(DIGEST, len(DATA))
        ingest.write(DATA)
        ingest.commit()
        assert await held == status


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


@pytest.mark.parametrize("rights", [ALICE, BASIC])
async def test_peers_are_not_sent_what_the_runtime_shows(rights: str) -> None:
    sent: list[str] = []

    def noting(app: ASGIApp) -> ASGIApp:
        async def note(scope: Scope, receive: Receive, send: Send) -> None:
            sent.append(repr(scope["headers"]) + scope["path"] + repr(scope["query_string"]))
            await app(scope, receive, send)

        return note

    resolvers = (UpstreamResolver(), PeersResolver())
    for resolver in resolvers:
        async with pair(at_door=noting, resolver=resolver) as (first, second):
            assert await second.status("v1", rights=rights) in {200, 404}
            assert (await second.get(first.secret.digest, rights=rights)).content == b"secret"
            first.registry.status = 503
            await second.status("v2", rights=rights)
    assert len(sent) > len(resolvers)
    secret = rights.split()[1]
    assert not [each for each in sent if secret[:20] in each or secret[-20:] in each]


async def test_an_image_that_is_not_covered_costs_the_registry_no_request() -> None:
    async with pair() as (first, second):
        first.tag("free/app", first.free_image)
        parts = (first.free_image.digest, first.shared.digest, first.free.digest, Digest.of(b"{ }"))
        for host in (first, second):  # from its store, and from a peer
            assert [await host.status(each, "free/app") for each in parts] == [200] * 4
            assert host.mirror.status()["upstream_requests"] == 0
        assert (first.registry.asked, first.registry.bases) == ([], 0)


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


async def test_the_layers_of_a_covered_manifest_are_not_named_to_who_writes_an_index_of_it() -> None:
    async with running() as host:
        missing = Digest.of(b"not here")
        entry = {"digest": missing, "size": 8}
        layers = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": entry, "layers": [entry]}
        hidden = host.store.add(json.dumps(layers).encode())
        host.tag("team/app", hidden)
        entries = [{"digest": hidden.digest, "size": 1, "mediaType": OCI_MANIFEST}]
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        index = host.store.add(json.dumps(document).encode())
        host.store.tag(Reference("evil.example", "x", "v1"), index)
        async with client_for(host.mirror.local) as client:
            answer = await client.get(f"/v2/evil.example/x/manifests/{index.digest}")
        assert answer.status_code == 404
        assert missing not in answer.text


async def test_a_request_without_rights_does_not_share_the_transfer_of_one_with_rights() -> None:
    """The peer sends it only because the rights of the first request were checked. That is lent to nobody."""
    is_open = asyncio.Event()
    async with pair(at_door=partial(Slowed, is_open)) as (first, second):
        digest = first.store.add(DATA).digest
        first.registry.content["team/app"].add(digest)
        incoming = second.mirror._incoming  # pyright: ignore[reportPrivateUsage]
        pulls = [asyncio.create_task(second.get(digest, rights=ALICE))]
        await until(lambda: (here := incoming.get(digest)) is not None and here.received > 0)
        others = [asyncio.create_task(second.status(digest, "free/app", rights=each)) for each in (BOB, None)]
        pulls.append(asyncio.create_task(second.get(digest, rights=ALICE)))  # this one may share it
        await until(lambda: len(taps_of(second, digest)) + sum(each.done() for each in others) == 4)
        is_open.set()
        assert await asyncio.gather(*others) == [404, 404]
        for answer in await asyncio.gather(*pulls):
            assert (answer.status_code, answer.content) == (200, DATA)


async def test_a_reader_of_what_is_relayed_gets_all_of_it_however_long_that_takes() -> None:
    """Also if the store does not show what arrives."""
    beginning, sending = asyncio.Event(), asyncio.Event()

    def held(app: ASGIApp) -> ASGIApp:
        slowed = Slowed(sending, app)

        async def hold(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["method"] == "GET":
                await beginning.wait()
            await slowed(scope, receive, send)

        return hold

    limits = replace(PATIENT, first_byte_timeout=60, stall_timeout=60)
    async with pair(at_door=held, limits=limits, auth=None, **UNPROVEN) as (first, second):
        layer = first.store.add(LARGE)
        first.tag("free/app", add_image(first.store, layer, config=b"{  }"))
        incoming, gate = second.mirror._incoming, second.mirror._gate  # pyright: ignore[reportPrivateUsage]
        assert gate is not None
        arrivals = gate.repositories.arrivals
        pulling = asyncio.create_task(second.get(layer.digest, "free/app"))
        await until(lambda: incoming.get(layer.digest) is not None)
        async with client_for(second.mirror.peer) as client:
            asked = path(second, f"free/app/blobs/{layer.digest}")
            reading = asyncio.create_task(client.get(asked, headers=IN_FLIGHT))
            await until(lambda: (here := incoming.get(layer.digest)) is not None and here.needs_ring)
            beginning.set()
            await until(lambda: bool(arrivals._relayed))  # pyright: ignore[reportPrivateUsage]
            arrivals._open.clear()  # pyright: ignore[reportPrivateUsage] - as after a minute
            sending.set()
            assert (await pulling).content == LARGE
            assert (await reading).content == LARGE


def taps_of(host: Host, digest: Digest) -> Collection[Tap]:
    """Return the transfers of `digest`."""
    incoming = host.mirror._incoming.get(digest)  # pyright: ignore[reportPrivateUsage]
    return () if incoming is None else incoming._taps  # pyright: ignore[reportPrivateUsage]


class Slowed:
    """An ASGI application that sends the first bytes of a body, and the rest when `is_open` is set."""

    def __init__(self, is_open: asyncio.Event, app: ASGIApp) -> None:
        self._is_open = is_open
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_slowly(message: Message) -> None:
            body = message.get("body", b"")
            if len(body) > 1000:
                await send({**message, "body": body[:1000], "more_body": True})
                await self._is_open.wait()
                message = {**message, "body": body[1000:]}
            await send(message)

        await self._app(scope, receive, send_slowly)
