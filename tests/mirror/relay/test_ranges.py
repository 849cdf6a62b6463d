"""Ranges of content that only peers have: each byte travels once. If there is no such byte, the status is 416."""

from __future__ import annotations

import json

import pytest
from tests.mirror.relay.peers import Exchange, Script, ScriptedPeer, answers, honest, peers, resets_after, wrong_bytes
from tests.mirror.relay.pulling import (
    LARGE,
    SMALL,
    AdvisingRouter,
    RecordingLease,
    content,
    manifest_with,
    path_of,
    pulling,
)
from tests.support.waiting import until

from peili.mirror import Digest, Feed, Holder
from peili.mirror.oci.references import OCI_INDEX
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio
RANGES = [
    "bytes=5000-9000",
    "bytes=0-4",
    "bytes=-3000",
    "bytes=5000-",
    "bytes=0-",
    "bytes=20479-",
    "bytes=100-999999999",
]
HEADS = 400
"""The largest size of a response head."""


def _part(data: bytes, byte_range: str) -> bytes:
    first, last = byte_range.removeprefix("bytes=").split("-")
    if not first:
        return data[-int(last) :]
    return data[int(first) : int(last) + 1 if last else None]


def _bytes_sent(*scripted: ScriptedPeer) -> int:
    """Bytes of the bodies that these peers sent, and of their short heads."""
    return sum(each.sent for peer in scripted for each in peer.exchanges)


def _with_size(peer: ScriptedPeer, size: int | None) -> Holder:
    return Holder(peer.peer, complete=True, size=size)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("byte_range", RANGES)
async def test_small_content_is_fetched_once_for_a_range(byte_range: str, known: bool) -> None:
    data, lease = content(SMALL), RecordingLease()
    async with peers(data, honest) as [a]:
        holder = _with_size(a, SMALL if known else None)
        async with pulling(AdvisingRouter(Feed((holder,), lease))) as host:
            pulled = await host.get(Digest.of(data), byte_range)
            await until(lambda: lease.reasons)
        assert (pulled.status, pulled.body) == (200 if byte_range == "bytes=0-" else 206, _part(data, byte_range))
        assert _bytes_sent(a) <= SMALL + HEADS * len(a.requests)
        assert a.connections == 1
        if known:
            assert a.ranges == [None]
    assert lease.reasons == ["done"]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("byte_range", RANGES)
async def test_only_the_range_of_large_content_is_fetched(byte_range: str, known: bool) -> None:
    data, lease = content(LARGE), RecordingLease()
    async with peers(data, honest) as [a]:
        holder = _with_size(a, LARGE if known else None)
        async with pulling(AdvisingRouter(Feed((holder,), lease))) as host:
            pulled = await host.get(Digest.of(data), byte_range)
            await until(lambda: lease.reasons)
        assert (pulled.status, pulled.body) == (200 if byte_range == "bytes=0-" else 206, _part(data, byte_range))
        assert _bytes_sent(a) <= len(pulled.body) + HEADS * len(a.requests)
    assert lease.reasons == ["done"]


@pytest.mark.parametrize("first", [answers(404), resets_after(1000), wrong_bytes])
@pytest.mark.parametrize("byte_range", RANGES)
async def test_a_range_of_small_content_is_right_even_if_the_first_holder_fails(byte_range: str, first: Script) -> None:
    data = content(SMALL)
    async with peers(data, first, honest) as [a, b], pulling([a.holder, b.holder]) as host:
        pulled = await host.get(Digest.of(data), byte_range)
        assert pulled.body == _part(data, byte_range)


async def test_a_wrong_byte_outside_of_the_range_is_noticed() -> None:
    data = content(SMALL)
    async with peers(data, wrong_bytes) as [a], pulling([a.holder]) as host:
        assert (await host.get(Digest.of(data), "bytes=0-9")).status == 404
        assert host.mirror.metrics.quarantines.value() == 1


async def test_a_range_takes_one_request_if_the_size_is_known() -> None:
    data = content(SMALL)
    async with peers(data, honest) as [a], pulling([a.holder]) as host:
        await host.get(Digest.of(data), "bytes=10-19")
        before = len(a.requests)
        assert (await host.get(Digest.of(data), "bytes=20-29")).body == data[20:30]
        assert len(a.requests) == before + 1


@pytest.mark.parametrize("claimed", [1, SMALL, 10 * LARGE])
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("byte_range", RANGES)
async def test_a_wrong_size_from_the_router_does_no_harm(byte_range: str, size: int, claimed: int) -> None:
    data = content(size)
    async with peers(data, honest) as [a], pulling(AdvisingRouter(Feed((_with_size(a, claimed),)))) as host:
        pulled = await host.get(Digest.of(data), byte_range)
        assert pulled.body == _part(data, byte_range)


@pytest.mark.parametrize(("condition", "status"), [('"{}"', 206), ('W/"{}"', 200), ('"other"', 200)])
@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_if_range_decides_between_the_range_and_the_whole(size: int, condition: str, status: int) -> None:
    data = content(size)
    async with peers(data, honest) as [a], pulling([a.holder]) as host:
        headers = {"Range": "bytes=5-9", "If-Range": condition.format(Digest.of(data))}
        response = await host.client.get(path_of(Digest.of(data)), headers=headers)
        assert response.status_code == status
        assert response.content == (data[5:10] if status == 206 else data)


INDEX = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "annotations": {"a": "b" * 200}})


@pytest.mark.parametrize("byte_range", ["bytes=5-9", "bytes=-7", "bytes=7-", "bytes=0-"])
@pytest.mark.parametrize("repeat", [200, LARGE])
async def test_a_range_of_a_manifest_is_served(byte_range: str, repeat: int) -> None:
    data, lease = INDEX.replace("b" * 200, "b" * repeat).encode(), RecordingLease()
    async with peers(data, honest) as [a], pulling(AdvisingRouter(Feed((a.holder,), lease))) as host:
        pulled = await host.get(Digest.of(data), byte_range, kind="manifests")
        assert (pulled.status, pulled.body) == (200 if byte_range == "bytes=0-" else 206, _part(data, byte_range))
        assert pulled.headers["content-type"] == OCI_INDEX
        assert a.ranges == [None]
        await until(lambda: lease.reasons)
    assert lease.reasons == ["done"]


async def _ignores_ranges(exchange: Exchange) -> None:
    exchange.request.headers.pop("range", None)
    await exchange.head(200)
    await exchange.send(exchange.content)


@pytest.mark.parametrize("first", [honest, answers(404), _ignores_ranges])
@pytest.mark.parametrize("how", ["unknown", "claimed", "in a manifest", "by the runtime"])
@pytest.mark.parametrize(
    ("kind", "data"), [("blobs", content(SMALL)), ("blobs", content(LARGE)), ("manifests", INDEX.encode())]
)
@pytest.mark.parametrize("beyond", ["bytes={}-", "bytes={}-999999999", "bytes=-0"])
async def test_a_range_after_the_end_gets_416_with_the_size(
    kind: str, data: bytes, beyond: str, how: str, first: Script
) -> None:
    digest, size, lease, store = Digest.of(data), len(data), RecordingLease(), MemoryStore()
    if how == "by the runtime":
        store.begin(digest, size)
    manifest = manifest_with(digest, size)
    async with peers(manifest, honest) as [m], peers(data, first, honest) as [a, b]:
        holders = tuple(_with_size(each, size if how == "claimed" else None) for each in (a, b))
        router = AdvisingRouter(*[Feed((m.holder,))] * (how == "in a manifest"), Feed(holders, lease))
        async with pulling(router, store=store) as host:
            if how == "in a manifest":
                await host.get(Digest.of(manifest), kind="manifests")
            response = await host.client.get(path_of(digest, kind), headers={"Range": beyond.format(size)})
            assert response.status_code == 416
            assert response.headers["content-range"] == f"bytes */{size}"
            assert host.mirror.metrics.quarantines.value() == 0
            await until(lambda: lease.reasons)
    assert lease.reasons == ["done"]


def answers_416(size: object) -> Script:
    async def script(exchange: Exchange) -> None:
        if exchange.request.range is None or exchange.request.method == "HEAD":
            await honest(exchange)
        else:
            await exchange.head(416, content_length="0", content_range=f"bytes */{size}")

    return script


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("claimed", [0, 5, 100_000, "x", 10**18])
async def test_a_wrong_416_does_not_hide_another_holder(size: int, claimed: object) -> None:
    data = content(size)
    async with peers(data, answers_416(claimed), honest) as [a, b], pulling([a.holder, b.holder]) as host:
        pulled = await host.get(Digest.of(data), f"bytes={size - 10}-{size - 5}")
        assert (pulled.status, pulled.body) == (206, data[-10:-4])


@pytest.mark.parametrize("claimed", [0, 5, 100_000, "x", 10**18])
async def test_416_does_not_state_a_size_that_contradicts_the_runtime(claimed: object) -> None:
    data, store = content(LARGE), MemoryStore()
    store.begin(Digest.of(data), LARGE)
    async with peers(data, answers_416(claimed)) as [a], pulling([a.holder], store=store) as host:
        response = await host.client.get(path_of(Digest.of(data)), headers={"Range": f"bytes={LARGE - 10}-"})
        assert response.status_code in {206, 404}


async def test_416_needs_holders_that_agree_about_the_size() -> None:
    data = content(LARGE)
    async with peers(data, answers_416(100_000), answers_416(200_000)) as [a, b], pulling([a.holder, b.holder]) as host:
        response = await host.client.get(path_of(Digest.of(data)), headers={"Range": "bytes=300000-"})
        assert response.status_code == 404


async def test_content_that_no_peer_has_gets_404_for_any_range() -> None:
    data = content(LARGE)
    manifest = manifest_with(Digest.of(data), LARGE)
    async with (
        peers(manifest, honest) as [m],
        peers(data, answers(404)) as [a],
        pulling(AdvisingRouter(Feed((m.holder,)), Feed((a.holder,)))) as host,
    ):
        await host.get(Digest.of(manifest), kind="manifests")
        assert (await host.get(Digest.of(data), f"bytes={LARGE}-")).status == 404
