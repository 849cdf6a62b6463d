"""HEAD requests and 304 for content that only peers have: a peer gets a HEAD request, and no body travels."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.mirror.relay.peers import (
    Exchange,
    Script,
    ScriptedPeer,
    answers,
    breaks_connections,
    honest,
    peers,
    wrong_digest,
)
from tests.mirror.relay.pulling import (
    LARGE,
    SMALL,
    AdvisingRouter,
    Host,
    RecordingLease,
    content,
    manifest_with,
    path_of,
    pulling,
)
from tests.support.waiting import until

from peili.mirror import Digest, Feed, Holder
from peili.mirror.oci.references import OCI_INDEX, OCI_MANIFEST, OCTET_STREAM
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio
INDEX = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "annotations": {"a": "b" * 200}})
SMALL_ONES = {"manifests": INDEX.encode(), "blobs": content(SMALL)}
LARGE_ONES = {"manifests": INDEX.replace("b" * 200, "b" * LARGE).encode(), "blobs": content(LARGE)}
BOTH = [*SMALL_ONES.items(), *LARGE_ONES.items()]
IDS = ["small manifest", "small blob", "large manifest", "large blob"]


async def _request(
    host: Host, method: str, digest: Digest, kind: str, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await host.client.request(method, path_of(digest, kind), headers=named)
    return response.status_code, {name.lower(): value for name, value in response.headers.items()}, response.content


def _bytes_sent(*scripted: ScriptedPeer) -> int:
    """Bytes of the bodies that these peers sent for GET requests."""
    return sum(each.sent for peer in scripted for each in peer.exchanges if each.request.method == "GET")


@pytest.mark.parametrize("first", [None, answers(404), answers(503), breaks_connections, wrong_digest])
@pytest.mark.parametrize(("kind", "data"), BOTH, ids=IDS)
async def test_a_head_request_is_sent_to_peers_as_head(kind: str, data: bytes, first: Script | None) -> None:
    digest, lease = Digest.of(data), RecordingLease()
    scripts = [honest] if first is None else [first, honest]
    async with peers(data, *scripts) as scripted:
        router = AdvisingRouter(Feed(tuple(each.holder for each in scripted), lease))
        async with pulling(router) as host:
            status, headers, body = await _request(host, "HEAD", digest, kind)
            assert (status, body) == (200, b"")
            assert [each.method for each in scripted[-1].requests] == ["HEAD"]
            assert _bytes_sent(*scripted) == 0
            await until(lambda: lease.reasons)
            get_status, get_headers, got = await _request(host, "GET", digest, kind)
    assert (get_status, got) == (200, data)
    assert {**headers, "date": ""} == {**get_headers, "date": ""}
    assert headers["content-length"] == str(len(data))
    assert lease.reasons[0] == "done"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("tag", ['"{}"', "*", 'W/"{}"', '"other", "{}"'])
@pytest.mark.parametrize(("kind", "data"), BOTH, ids=IDS)
async def test_if_none_match_of_the_digest_gets_304(kind: str, data: bytes, tag: str, method: str) -> None:
    digest, lease = Digest.of(data), RecordingLease()
    async with peers(data, answers(404), honest) as [a, b]:
        async with pulling(AdvisingRouter(Feed((a.holder, b.holder), lease))) as host:
            status, headers, body = await _request(
                host, method, digest, kind, If_None_Match=tag.format(digest), Range="bytes=5-6"
            )
            assert (status, body) == (304, b"")
            assert headers["etag"] == f'"{digest}"'
            await until(lambda: lease.reasons)
        assert [each.method for each in b.requests] == ["HEAD"]
        assert _bytes_sent(a, b) == 0
    assert lease.reasons == ["done"]


@pytest.mark.parametrize("kind", ["manifests", "blobs"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_if_none_match_of_content_that_no_peer_has_gets_404(method: str, kind: str) -> None:
    digest = Digest.of(b"?")
    async with peers(b"?", answers(404)) as [a], pulling([a.holder]) as host:
        status, _, _ = await _request(host, method, digest, kind, If_None_Match=f'"{digest}"')
        assert status == 404
        assert [each.method for each in a.requests] == ["HEAD"]


@pytest.mark.parametrize("kind", ["manifests", "blobs"])
async def test_if_none_match_of_another_digest_gets_the_content(kind: str) -> None:
    data = SMALL_ONES[kind]
    async with peers(data, honest) as [a], pulling([a.holder]) as host:
        status, _, body = await _request(host, "GET", Digest.of(data), kind, If_None_Match='"other"')
        assert (status, body) == (200, data)


def claims_in_head(**fields: Any) -> Script:
    """States these headers in the response to HEAD, and is honest otherwise."""

    async def script(exchange: Exchange) -> None:
        if exchange.request.method == "HEAD":
            await exchange.head(**fields)
        else:
            await honest(exchange)

    return script


@pytest.mark.parametrize("size", [LARGE + 1, 2**62])
async def test_a_size_that_contradicts_a_verified_manifest_is_not_passed_on(size: int) -> None:
    data = content(LARGE)
    manifest = manifest_with(Digest.of(data), LARGE)
    script = claims_in_head(content_length=str(size))
    async with peers(manifest, honest) as [m], peers(data, script, honest) as [a, b]:
        router = AdvisingRouter(Feed((m.holder,)), Feed((a.holder, b.holder)))
        async with pulling(router) as host:
            await _request(host, "GET", Digest.of(manifest), "manifests")
            status, headers, _ = await _request(host, "HEAD", Digest.of(data), "blobs")
            assert (status, headers["content-length"]) == (200, str(LARGE))
            assert host.mirror.metrics.quarantines.value() == 0, "the manifest might be wrong"


@pytest.mark.parametrize("size", [LARGE + 1, 2**62])
async def test_a_size_that_contradicts_the_runtime_is_not_passed_on(size: int) -> None:
    data, store = content(LARGE), MemoryStore()
    store.begin(Digest.of(data), LARGE).write(data[:9])
    async with (
        peers(data, claims_in_head(content_length=str(size)), honest) as [a, b],
        pulling([a.holder, b.holder], store=store) as host,
    ):
        status, headers, _ = await _request(host, "HEAD", Digest.of(data), "blobs")
        assert (status, headers["content-length"]) == (200, str(LARGE))


async def test_a_size_above_the_limit_is_not_believed() -> None:
    data = content(LARGE)
    async with peers(data, claims_in_head(content_length=str(2**62))) as [a], pulling([a.holder]) as host:
        assert (await _request(host, "HEAD", Digest.of(data), "blobs"))[0] == 404
        assert host.mirror.metrics.limited.value("blob_size") == 1


@pytest.mark.parametrize("kind", ["manifests", "blobs"])
async def test_the_content_is_verified_if_holders_contradict_each_other(kind: str) -> None:
    data = SMALL_ONES[kind]
    async with peers(data, claims_in_head(content_length="77"), honest) as [a, b]:
        holders = Holder(a.peer, True, size=77), Holder(b.peer, True, size=len(data))
        async with pulling(AdvisingRouter(Feed(holders))) as host:
            status, headers, body = await _request(host, "HEAD", Digest.of(data), kind)
            assert (status, headers["content-length"], body) == (200, str(len(data)), b"")


async def test_a_size_that_was_wrong_once_is_not_passed_on_again() -> None:
    data = INDEX.encode()
    async with (
        peers(data, claims_in_head(content_length="77"), honest) as [a, b],
        pulling([a.holder, b.holder]) as host,
    ):
        assert (await _request(host, "HEAD", Digest.of(data), "manifests"))[1]["content-length"] == "77"
        assert (await _request(host, "GET", Digest.of(data), "manifests"))[2] == data
        assert (await _request(host, "HEAD", Digest.of(data), "manifests"))[1]["content-length"] == str(len(data))
        assert host.mirror.metrics.quarantines.value() == 1


@pytest.mark.parametrize("claimed", ["", OCTET_STREAM, "text/html", "application/json", "x" * 300])
async def test_the_document_tells_its_type_if_the_head_does_not(claimed: str) -> None:
    data = INDEX.encode()
    async with peers(data, claims_in_head(content_type=claimed)) as [a], pulling([a.holder]) as host:
        status, headers, _ = await _request(host, "HEAD", Digest.of(data), "manifests")
        assert (status, headers["content-type"]) == (200, OCI_INDEX)


async def test_a_media_type_may_have_parameters() -> None:
    data = INDEX.encode()
    script = claims_in_head(content_type=f"{OCI_INDEX}; charset=utf-8")
    async with peers(data, script) as [a], pulling([a.holder]) as host:
        _, headers, _ = await _request(host, "HEAD", Digest.of(data), "manifests")
        assert headers["content-type"] == OCI_INDEX
        assert _bytes_sent(a) == 0


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_blob_is_not_a_manifest_because_a_peer_claims_it(size: int) -> None:
    data = content(size)
    async with peers(data, claims_in_head(content_type=OCI_MANIFEST)) as [a], pulling([a.holder]) as host:
        _, headers, _ = await _request(host, "HEAD", Digest.of(data), "blobs")
        assert headers["content-type"] == OCTET_STREAM


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_blob_is_not_found_as_a_manifest_and_the_lease_ends_as_done(method: str) -> None:
    data, lease = content(SMALL), RecordingLease()
    async with peers(data, honest) as [a], pulling(AdvisingRouter(Feed((a.holder,), lease))) as host:
        assert (await _request(host, method, Digest.of(data), "manifests"))[0] == 404
        await until(lambda: lease.reasons)
    assert lease.reasons == ["done"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_manifest_that_is_too_large_does_not_hide_another_holder(method: str) -> None:
    data = INDEX.encode()

    async def endless(exchange: Exchange) -> None:
        await exchange.head(content_length=str(2**40))

    async with peers(data, endless, honest) as [a, b], pulling([a.holder, b.holder]) as host:
        status, _, body = await _request(host, method, Digest.of(data), "manifests")
        assert (status, body) == (200, data if method == "GET" else b"")
        assert host.mirror.metrics.limited.value("manifest_size") == 1


@pytest.mark.parametrize("length", ["", "x", "-1", "1" * 40])
async def test_a_head_without_a_valid_size_is_not_used(length: str) -> None:
    data = content(SMALL)
    async with (
        peers(data, claims_in_head(content_length=length), honest) as [a, b],
        pulling([a.holder, b.holder]) as host,
    ):
        status, headers, _ = await _request(host, "HEAD", Digest.of(data), "blobs")
        assert (status, headers["content-length"]) == (200, str(SMALL))
