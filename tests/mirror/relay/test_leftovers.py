"""Unverified bytes that the runtime keeps, and completes without the relay. A wrong ingest is removed, no other one is.

Such a runtime does not remove it itself: each later pull would fail at once. The tests write the ingest as containerd
does, and leave it whole, but not committed.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.mirror.relay.feeders import ScriptedFeeder, in_flight
from tests.mirror.relay.peers import peers, wrong_from_the_start
from tests.mirror.relay.pulling import LARGE, MIB, AdvisingRouter, Host, RecordingLease, content, pulling
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Content, Digest, Feed, Upstream
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

DATA = content(2 * MIB + 1000)
DIGEST = Digest.of(DATA)
CUT = MIB + MIB // 2
WRONG = b"?" + DATA[1:]


class RuntimeStore(MemoryStore):
    """Records what was opened in flight, and what was discarded."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[Any] = []
        self.discarded: list[Digest] = []

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        content = await super().open(digest, partial=partial)
        if partial:
            self.opened.append(content)
        return content

    @override
    async def discard(self, digest: Digest) -> bool:
        self.discarded.append(digest)
        return await super().discard(digest)

    async def all_closed(self) -> None:
        """Wait until nobody reads what was opened in flight."""
        await until(lambda: self.opened and all(each.is_closed for each in self.opened))


async def fetch_and_be_cut(host: Host, feeder: ScriptedFeeder, sent: bytes, store: RuntimeStore) -> None:
    """Get the first `CUT` bytes of `sent`, which the feeder has, and write them into an ingest as they arrive."""
    feeder.sent = sent
    ingest = store.begin(DIGEST, len(DATA))
    getting = asyncio.create_task(host.get(DIGEST))
    await feeder.asked(1)
    await feeder.set(is_cut=True, status=404)
    pulled = await getting
    assert not pulled.whole
    ingest.write(pulled.body)
    assert (await host.get(DIGEST, f"bytes={len(pulled.body)}-")).status == 404, "the runtime goes upstream"
    ingest.write(DATA[len(pulled.body) :])


@pytest.mark.parametrize("verify", [True, False])
async def test_a_wrong_ingest_that_upstream_completed_is_removed(
    verify: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store, feeder = RuntimeStore(), ScriptedFeeder(CUT)
    async with peers(DATA, feeder) as [a]:
        router = AdvisingRouter(Feed((in_flight(a),)), Upstream())
        async with pulling(router, store=store, verify=verify, hedge_delay=0.04) as host:
            await fetch_and_be_cut(host, feeder, WRONG, store)
            await until(lambda: store.discarded)
            assert store.discarded == [DIGEST]
            assert "removed the runtime's unfinished copy" in caplog.text
            await host.get(DIGEST)
            assert not router.wants[-1].accepts_in_flight, "the wrong byte may come from a host in flight again"


async def test_a_right_ingest_stays() -> None:
    store, feeder = RuntimeStore(), ScriptedFeeder(CUT)
    async with peers(DATA, feeder) as [a]:
        router = AdvisingRouter(Feed((in_flight(a),)), Upstream())
        async with pulling(router, store=store, hedge_delay=0.04) as host:
            await fetch_and_be_cut(host, feeder, DATA, store)
            await store.all_closed()
            assert store.discarded == []
            await host.get(DIGEST)
            assert router.wants[-1].accepts_in_flight


async def test_wrong_parts_that_could_not_be_verified_are_removed() -> None:
    """The runtime fetches parts in parallel, and the relay verifies none of them."""
    data, store = content(LARGE), RuntimeStore()
    digest, half = Digest.of(data), LARGE // 2
    async with peers(data, wrong_from_the_start) as [a], pulling([a.holder], store=store) as host:
        ingest = store.begin(digest, LARGE)
        parts = [await host.get(digest, each) for each in (f"bytes={half}-", f"bytes=0-{half - 1}")]
        assert all(part.whole for part in parts)
        for part in reversed(parts):
            ingest.write(part.body)
        await until(lambda: store.discarded)
        assert store.discarded == [digest]


async def test_nothing_is_checked_when_a_response_has_outlived_the_mirror() -> None:
    """Nobody would end the check, which may take an hour."""
    store, feeder, lease = RuntimeStore(), ScriptedFeeder(CUT), RecordingLease()
    async with peers(DATA, feeder) as [a]:
        async with pulling(AdvisingRouter(Feed((in_flight(a),), lease), Upstream()), store=store) as host:
            store.begin(DIGEST, len(DATA))
            getting = asyncio.create_task(host.get(DIGEST))
            await until(lambda: lease.offsets)
            await host.mirror.__aexit__(None, None, None)
            assert not (await getting).whole
            await until(lambda: lease.reasons)
        checks = [each for each in asyncio.all_tasks() if getattr(each.get_coro(), "__name__", "") == "_check"]
        assert not checks
