"""Peers that send wrong bytes: no wrong byte is committed, the peer is quarantined for the blob, and a retry works."""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial

import pytest
from tests.mirror.relay.peers import (
    Exchange,
    Script,
    honest,
    in_turn,
    more_than_said,
    other_content,
    peers,
    short_after,
    too_large,
    wrong_bytes,
    wrong_bytes_2,
    wrong_in_the_middle,
)
from tests.mirror.relay.peers import wrong_from_the_start as wrong_start
from tests.mirror.relay.pulling import KIB, LARGE, NEVER, SMALL, FixedRouter, content, pulling
from typing_extensions import override

from peili.mirror import Digest, StoreUnavailable
from peili.mirror.relay.blame import Blame
from peili.mirror.relay.buffers import RING_LENGTH
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def manifest_of(size: int) -> bytes:
    annotations = {"padding": "x" * size}
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [], "annotations": annotations}).encode()


class DiscardRecorder(MemoryStore):
    """Records what was discarded."""

    def __init__(self) -> None:
        super().__init__()
        self.discarded: list[Digest] = []

    @override
    async def discard(self, digest: Digest) -> bool:
        self.discarded.append(digest)
        return await super().discard(digest)


def warnings(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING)


@pytest.mark.parametrize("bad", [wrong_bytes, wrong_start, too_large])
@pytest.mark.parametrize("verify", [True, False])
async def test_the_runtime_receives_no_wrong_byte_of_small_content(bad: Script, verify: bool) -> None:
    data = content(SMALL)
    async with peers(data, bad, honest) as [a, b], pulling([a.holder, b.holder], verify=verify) as host:
        pulled = await host.get(Digest.of(data))
        assert (pulled.status, pulled.body, pulled.whole) == (200, data, True)
        again = await host.get(Digest.of(data))
        assert again.body == data
        assert (len(a.requests), len(b.requests)) == (1, 2)


async def test_a_range_of_small_content_is_verified_with_the_whole() -> None:
    data = content(SMALL)
    async with peers(data, wrong_start, honest) as [a, b], pulling([a.holder, b.holder]) as host:
        pulled = await host.get(Digest.of(data), "bytes=0-99")
        assert (pulled.status, pulled.body) == (206, data[:100])
        assert len(b.requests) >= 1


async def test_bytes_after_the_stated_length_are_not_passed_on() -> None:
    data, other = content(SMALL), content(SMALL, seed=2)
    async with peers(data, more_than_said) as [a], pulling([a.holder]) as host:
        assert (await host.get(Digest.of(data))).body == data
        a.content, a.script = other, honest
        pulled = await host.get(Digest.of(other))
        assert pulled.status == 404 or pulled.body == other


async def test_wrong_small_content_of_the_only_holder_is_404(caplog: pytest.LogCaptureFixture) -> None:
    data, store = content(SMALL), DiscardRecorder()
    async with peers(data, wrong_bytes) as [a], pulling([a.holder], store=store) as host:
        assert (await host.get(Digest.of(data))).status == 404
        assert "peer a sent wrong bytes" in warnings(caplog)
        assert store.discarded == []  # the runtime received nothing
        assert (await host.get(Digest.of(data))).status == 404
        assert len(a.requests) == 1


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("bad", [wrong_start, wrong_in_the_middle, other_content])
async def test_the_end_of_wrong_large_content_is_withheld(
    bad: Script, direct: bool, caplog: pytest.LogCaptureFixture
) -> None:
    data, store = content(LARGE), DiscardRecorder()
    digest = Digest.of(data)
    async with (
        peers(data, bad, honest) as [a, b],
        pulling(
            [a.holder, b.holder],
            store=store,
            direct=direct,
            relay_memory=RING_LENGTH * 32 * KIB,
        ) as host,
    ):
        pulled = await host.get(digest)
        assert pulled.status == 200
        assert not pulled.whole
        assert len(pulled.body) < int(pulled.headers["content-length"])
        assert "peer a sent wrong bytes" in warnings(caplog)
        assert store.discarded == [digest]

        rest = await host.get(digest, f"bytes={len(pulled.body)}-")
        assert rest.status == 404  # it would continue after wrong bytes
        assert "peer b" not in warnings(caplog)

        count = len(b.requests)
        anew = await host.get(digest)
        assert (anew.status, anew.body, anew.whole) == (200, data, True)
        assert (len(a.requests), len(b.requests)) == (1, count + 1)
        assert (await host.get(digest, "bytes=9-")).body == data[9:]  # after a new start, the runtime can continue


async def test_a_peer_is_quarantined_for_the_wrong_blob_only() -> None:
    data, other = content(LARGE), content(LARGE, seed=2)
    async with peers(data, wrong_bytes) as [a], pulling([a.holder]) as host:
        assert not (await host.get(Digest.of(data))).whole
        assert (await host.get(Digest.of(data))).status == 404
        a.content, a.script = other, honest
        assert (await host.get(Digest.of(other))).body == other


async def test_quarantine_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    data, now = content(SMALL), [0.0]
    monkeypatch.setattr("peili.mirror.relay.state.Blame", partial(Blame, clock=lambda: now[0]))
    async with peers(data, in_turn(wrong_bytes, honest)) as [a], pulling([a.holder], quarantine_ttl=600) as host:
        assert (await host.get(Digest.of(data))).status == 404
        now[0] = 599.0
        assert (await host.get(Digest.of(data))).status == 404
        now[0] = 601.0
        assert (await host.get(Digest.of(data))).body == data
        assert len(a.requests) == 2


async def test_a_manifest_of_any_size_is_verified_even_without_verify() -> None:
    data = manifest_of(LARGE)
    async with peers(data, wrong_bytes, honest) as [a, b], pulling([a.holder, b.holder], verify=False) as host:
        pulled = await host.get(Digest.of(data), kind="manifests")
        assert (pulled.status, pulled.body) == (200, data)
        assert pulled.headers["content-type"] == MANIFEST
        assert len(a.requests) == len(b.requests) == 1


async def test_a_manifest_above_the_limit_is_not_relayed() -> None:
    data = manifest_of(LARGE)
    async with peers(data, honest) as [a], pulling([a.holder], manifest_size=100_000) as host:
        assert (await host.get(Digest.of(data), kind="manifests")).status == 404
        assert a.exchanges[0].sent < 2 * LARGE


async def test_a_blob_is_not_served_as_a_manifest() -> None:
    data = content(SMALL)
    async with peers(data, honest) as [a], pulling([a.holder]) as host:
        assert (await host.get(Digest.of(data), kind="manifests")).status == 404


@pytest.mark.parametrize("direct", [True, False])
async def test_unverified_wrong_large_content_reaches_the_runtime(direct: bool) -> None:
    data = content(LARGE)
    async with (
        peers(data, wrong_bytes) as [a],
        pulling([a.holder], verify=False, direct=direct) as host,
    ):
        pulled = await host.get(Digest.of(data))
        assert pulled.whole
        assert pulled.body[:-1] == data[:-1]
        assert pulled.body != data


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("others", [(honest,), (wrong_bytes_2, honest)])
async def test_a_wrong_end_is_replaced_by_an_honest_holder(
    others: tuple[Script, ...], direct: bool, caplog: pytest.LogCaptureFixture
) -> None:
    data, store = content(LARGE), DiscardRecorder()
    digest = Digest.of(data)
    async with (
        peers(data, wrong_bytes, *others) as [a, *rest],
        pulling([a.holder, *(each.holder for each in rest)], store=store, direct=direct) as host,
    ):
        pulled = await host.get(digest)
        assert (pulled.status, pulled.body, pulled.whole) == (200, data, True)
        assert "peer a sent wrong bytes" in warnings(caplog)
        assert store.discarded == []
        assert (await host.get(digest)).body == data
        assert len(a.requests) == 1


async def test_an_early_end_is_continued_and_a_wrong_end_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    data = content(LARGE)
    async with (
        peers(data, short_after(200_000), wrong_bytes, honest) as [a, b, c],
        pulling([a.holder, b.holder, c.holder]) as host,
    ):
        assert (await host.get(Digest.of(data))).body == data
        assert "peer a" not in warnings(caplog)
        assert "peer b sent" in warnings(caplog)
        assert (await host.get(Digest.of(data))).body == data
        assert (len(a.requests), len(b.requests)) == (1, 1)


async def wrong_and_short(exchange: Exchange) -> None:
    """Send a wrong byte, and break off."""
    await exchange.head()
    await exchange.send(b"!" + exchange.body[1:200_000])
    exchange.close()


async def test_no_peer_is_quarantined_if_several_may_be_to_blame(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = content(LARGE)
    async with (
        peers(data, wrong_and_short, honest, honest) as [a, b, c],
        pulling([a.holder, b.holder, c.holder]) as host,
    ):
        digest = Digest.of(data)
        assert not (await host.get(digest)).whole
        assert host.mirror.metrics.quarantines.value() == 0
        assert "peer b may have sent wrong bytes" in warnings(caplog)
        assert "peer c" not in warnings(caplog)
        assert (await host.get(digest)).body == data
        assert (len(a.requests), len(b.requests)) == (1, 1)


async def test_a_doubted_peer_is_asked_after_the_others() -> None:
    data = content(LARGE)
    digest = Digest.of(data)
    async with peers(data, wrong_and_short, honest, honest) as [a, b, c]:
        router = FixedRouter(a.holder, b.holder)
        async with pulling(router, failure_ttl=0.001) as host:
            assert not (await host.get(digest)).whole
            router.holders = (a.holder, b.holder, c.holder)
            assert (await host.get(digest)).body == data
            assert (len(a.requests), len(b.requests), len(c.requests)) == (1, 1, 1)


async def test_a_wrong_size_does_not_stop_an_honest_holder() -> None:
    """The first peer states too many bytes and ends early; the second one states another size, which is right."""
    data = content(SMALL)
    async with peers(data, larger_and_short, honest) as [a, b], pulling([a.holder, b.holder]) as host:
        assert (await host.get(Digest.of(data))).body == data
        assert len(a.requests) == 1


async def test_only_senders_of_bytes_that_were_kept_are_blamed() -> None:
    """The bytes of the first peer, which stated another size, were thrown away. So the second one is to blame."""
    data = content(SMALL)
    async with (
        peers(data, larger_and_short, wrong_bytes, honest) as [a, b, c],
        pulling([a.holder, b.holder, c.holder]) as host,
    ):
        assert (await host.get(Digest.of(data))).body == data
        assert host.mirror.metrics.quarantines.value() == 1


async def larger_and_short(exchange: Exchange) -> None:
    await exchange.head(content_length=str(len(exchange.body) + 10))
    await exchange.send(exchange.body[:-5000])
    exchange.close()


async def test_a_resumed_blob_is_verified_with_what_the_runtime_has() -> None:
    data, store, at = content(LARGE), DiscardRecorder(), 300_000
    digest = Digest.of(data)
    store.begin(digest, LARGE).write(data[:at])
    async with peers(data, wrong_start, honest) as [a, b], pulling([a.holder, b.holder], store=store) as host:
        pulled = await host.get(digest, f"bytes={at}-")
        assert pulled.status == 206
        assert not pulled.whole
        assert store.discarded == [digest]
        assert len(a.requests) == 1


@pytest.mark.parametrize("at", [300_000, LARGE - 5000])
async def test_a_wrong_end_of_a_resumed_blob_is_replaced(at: int) -> None:
    data, store = content(LARGE), DiscardRecorder()
    digest = Digest.of(data)
    store.begin(digest, LARGE).write(data[:at])
    async with peers(data, wrong_bytes, honest) as [a, b], pulling([a.holder, b.holder], store=store) as host:
        pulled = await host.get(digest, f"bytes={at}-")
        assert (pulled.status, pulled.whole, pulled.body) == (206, True, data[at:])
        assert store.discarded == []


async def test_a_peer_that_continues_after_wrong_bytes_is_not_blamed() -> None:
    data, store, at = content(LARGE), DiscardRecorder(), 300_000
    digest = Digest.of(data)
    store.begin(digest, LARGE).write(b"!" + data[1:at])
    async with peers(data, honest, honest) as [a, b], pulling([a.holder, b.holder], store=store) as host:
        assert not (await host.get(digest, f"bytes={at}-")).whole
        assert store.discarded == [digest]
        assert host.mirror.metrics.quarantines.value() == 0


async def test_a_correct_resumed_blob_is_verified() -> None:
    data, store, at = content(LARGE), DiscardRecorder(), 300_000
    store.begin(Digest.of(data), LARGE).write(data[: at + 5000])  # more bytes may have arrived meanwhile
    async with peers(data, honest) as [a], pulling([a.holder], store=store) as host:
        pulled = await host.get(Digest.of(data), f"bytes={at}-")
        assert (pulled.status, pulled.body, pulled.whole) == (206, data[at:], True)
        assert store.discarded == []


async def test_a_short_wrong_rest_is_not_passed_on() -> None:
    data, store, at = content(LARGE), DiscardRecorder(), LARGE - 5000
    store.begin(Digest.of(data), LARGE).write(data[:at])
    async with peers(data, wrong_bytes) as [a], pulling([a.holder], store=store) as host:
        assert (await host.get(Digest.of(data), f"bytes={at}-")).status == 404
        assert store.discarded == [Digest.of(data)]


@pytest.mark.parametrize("arrived", [None, 100])
async def test_a_rest_is_unverified_if_the_store_cannot_show_the_beginning(arrived: int | None) -> None:
    data, store, at = content(LARGE), DiscardRecorder(), 300_000
    if arrived is not None:
        store.begin(Digest.of(data), LARGE).write(data[:arrived])
    async with peers(data, wrong_bytes) as [a], pulling([a.holder], store=store) as host:
        pulled = await host.get(Digest.of(data), f"bytes={at}-")
        assert pulled.whole
        assert pulled.body[:-1] == data[at:-1]
        assert store.discarded == []


async def test_a_head_request_does_not_clear_a_poisoned_blob() -> None:
    data, store, at = content(LARGE), DiscardRecorder(), 300_000
    digest = Digest.of(data)
    store.begin(digest, LARGE).write(data[:at])
    async with peers(data, wrong_start, honest) as [a, b], pulling([a.holder, b.holder], store=store) as host:
        assert not (await host.get(digest, f"bytes={at}-")).whole
        assert (await host.get(digest, method="HEAD")).status == 200
        cut = await host.get(digest, f"bytes={at}-")
        assert (cut.body, cut.whole) == (b"", False)
        assert (await host.get(digest)).body == data  # this starts again
        store.begin(digest, LARGE).write(data[:at])
        assert (await host.get(digest, f"bytes={at}-")).body == data[at:]


async def test_a_head_request_does_not_clear_suspects() -> None:
    data, store = content(LARGE), DiscardRecorder()
    digest = Digest.of(data)
    async with peers(data, wrong_and_short, honest, honest) as [a, b, c]:
        router = FixedRouter(a.holder)
        async with pulling(router, store=store) as host:
            first = await host.get(digest)
            store.begin(digest, LARGE).write(first.body)
            router.holders = (c.holder,)
            assert (await host.get(digest, method="HEAD")).status == 200
            router.holders = (b.holder,)
            assert not (await host.get(digest, f"bytes={len(first.body)}-")).whole
            router.holders = (a.holder, c.holder)
            assert (await host.get(digest)).body == data
            assert len(a.requests) == 1


async def test_a_runtime_whose_wrong_bytes_were_removed_gives_up_and_does_not_fetch_the_rest_in_vain() -> None:
    data, store, at = content(LARGE), DiscardRecorder(), 300_000
    digest = Digest.of(data)
    store.begin(digest, LARGE).write(data[:at])
    async with peers(data, wrong_start, honest) as [a, b], pulling([a.holder, b.holder], store=store) as host:
        assert not (await host.get(digest, f"bytes={at}-")).whole
        assert store.discarded == [digest]
        asked = len(a.requests) + len(b.requests)
        cuts = [await host.get(digest, f"bytes={at}-") for _ in range(5)]
        assert {(each.status, each.body, each.whole) for each in cuts} == {(206, b"", False)}
        assert (await host.get(digest, f"bytes={at}-")).status == 404, "this runtime does not give up"
        assert len(a.requests) + len(b.requests) == asked


class FailingDiscardStore(MemoryStore):
    """Fails to discard with `error`. If there is none, it hangs."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self._error = error

    @override
    async def discard(self, digest: Digest) -> bool:
        if self._error is not None:
            raise self._error
        return await asyncio.Future[bool]()


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (StoreUnavailable("away"), "away"),
        (LookupError("a bug"), "the store failed"),
        (TimeoutError("late"), "the store failed"),
    ],
)
@pytest.mark.parametrize("at", [0, LARGE - 5000])
async def test_a_store_that_fails_to_discard_is_logged(
    error: Exception, why: str, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    data, store = content(LARGE), FailingDiscardStore(error)
    store.begin(Digest.of(data), LARGE).write(data[:at])
    async with peers(data, wrong_bytes) as [a], pulling(FixedRouter(a.holder), store=store) as host:
        pulled = await host.get(Digest.of(data), f"bytes={at}-")
        assert (pulled.status, pulled.whole) == ((404, True) if at else (200, False))
        assert f"could not be removed: {why}" in warnings(caplog)
        assert host.mirror.metrics.limited.value("first_byte_timeout") == 0


@pytest.mark.parametrize("at", [0, LARGE - 5000])
async def test_a_store_that_hangs_while_it_discards_is_abandoned(at: int, caplog: pytest.LogCaptureFixture) -> None:
    data, store = content(LARGE), FailingDiscardStore(None)
    store.begin(Digest.of(data), LARGE).write(data[:at])
    async with (
        peers(data, wrong_bytes) as [a],
        pulling(FixedRouter(a.holder), store=store, first_byte_timeout=0.4, wait_timeout=NEVER) as host,
    ):
        pulled = await host.get(Digest.of(data), f"bytes={at}-")
        assert (pulled.status, pulled.whole) == ((404, True) if at else (200, False))
        assert "could not be removed: the store did not return in time" in warnings(caplog)
        assert host.mirror.metrics.limited.value("first_byte_timeout") == 1


async def test_the_sender_of_a_wrong_byte_is_blamed_when_another_peer_continues() -> None:
    """The first peer sends a wrong byte and breaks; the second one, which continues, is honest."""
    data, store = content(LARGE), DiscardRecorder()
    digest = Digest.of(data)
    async with peers(data, wrong_and_short, honest, honest) as [a, b, c]:
        router = FixedRouter(a.holder)
        async with pulling(router, store=store) as host:
            first = await host.get(digest)
            assert not first.whole
            store.begin(digest, LARGE).write(first.body)
            router.holders = (b.holder,)
            assert not (await host.get(digest, f"bytes={len(first.body)}-")).whole
            assert store.discarded == [digest]
            router.holders = (a.holder, b.holder, c.holder)
            assert (await host.get(digest)).body == data
            assert (len(a.requests), len(b.requests), len(c.requests)) == (1, 1, 1)


async def test_a_sender_of_verified_bytes_is_not_blamed_later() -> None:
    data, store, at = content(LARGE), DiscardRecorder(), 300_000
    digest = Digest.of(data)
    async with peers(data, honest, wrong_bytes) as [a, b]:
        router = FixedRouter(a.holder)
        async with pulling(router, store=store) as host:
            assert (await host.get(digest)).whole
            store.begin(digest, LARGE).write(data[:at])
            router.holders = (b.holder,)
            assert not (await host.get(digest, f"bytes={at}-")).whole
            router.holders = (a.holder, b.holder)
            assert (await host.get(digest)).body == data
            assert len(b.requests) == 1
