"""The relay accepts no more bytes from a peer than the content has, or may have."""

from __future__ import annotations

import json

import pytest
from tests.mirror.relay.peers import Script, endless, honest, in_turn, only_chunked, peers, unknown_length
from tests.mirror.relay.pulling import LARGE, SMALL, FixedRouter, content, manifest_with, pulling

from peili.mirror import Digest
from peili.mirror.relay.known_sizes import KnownSizes
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio
HUGE = 2**62


@pytest.mark.parametrize("size", [HUGE, LARGE + 1, LARGE - 1])
async def test_the_size_in_a_verified_manifest_is_used(size: int) -> None:
    data = content(LARGE)
    manifest = manifest_with(Digest.of(data), LARGE)
    async with peers(manifest, honest) as [m], peers(data, endless(size), honest) as [a, b]:
        router = FixedRouter(m.holder)
        async with pulling(router) as host:
            assert (await host.get(Digest.of(manifest), kind="manifests")).status == 200
            router.holders = (a.holder, b.holder)
            pulled = await host.get(Digest.of(data))
            assert (pulled.status, pulled.body, pulled.whole) == (200, data, True)
            assert (await host.get(Digest.of(data))).body == data
            assert host.mirror.metrics.quarantines.value() == 0, "the manifest might be wrong"


@pytest.mark.parametrize("size", [LARGE - 1, LARGE + 1])
async def test_a_wrong_size_in_a_manifest_harms_no_other_image(size: int) -> None:
    """The author of the image wrote the wrong size. A holder of the real layer is not to blame."""
    data = content(LARGE)
    wrong, right = (manifest_with(Digest.of(data), each) for each in (size, LARGE))
    async with peers(wrong, honest) as [w], peers(right, honest) as [r], peers(data, honest) as [a]:
        router = FixedRouter(w.holder)
        async with pulling(router) as host:
            assert (await host.get(Digest.of(wrong), kind="manifests")).status == 200
            router.holders = (a.holder,)
            assert (await host.get(Digest.of(data))).status == 404
            router.holders = (r.holder,)
            assert (await host.get(Digest.of(right), kind="manifests")).status == 200
            router.holders = (a.holder,)
            pulled = await host.get(Digest.of(data))
            assert (pulled.status, pulled.body, pulled.whole) == (200, data, True)


@pytest.mark.parametrize("at", [0, 300_000])
async def test_the_runtime_overrules_the_manifest_of_another_image(at: int) -> None:
    """The right manifest came from upstream, or was here already; the runtime expects the size that it states."""
    data, store = content(LARGE), MemoryStore()
    wrong = manifest_with(Digest.of(data), LARGE - 1)
    async with peers(wrong, honest) as [w], peers(data, endless(LARGE + 1), honest) as [a, b]:
        router = FixedRouter(w.holder)
        async with pulling(router, store=store) as host:
            assert (await host.get(Digest.of(wrong), kind="manifests")).status == 200
            store.begin(Digest.of(data), LARGE).write(data[:at])
            router.holders = (a.holder, b.holder)
            pulled = await host.get(Digest.of(data), f"bytes={at}-" if at else None)
            assert (pulled.status, pulled.body, pulled.whole) == (206 if at else 200, data[at:], True)


@pytest.mark.parametrize("at", [0, 300_000])
@pytest.mark.parametrize(("size", "quarantines"), [(HUGE, 1), (LARGE + 1, 0)])
async def test_the_size_that_the_runtime_expects_is_used(at: int, size: int, quarantines: int) -> None:
    """It comes from a manifest, which may be wrong. Only a size above all limits puts the peer into quarantine."""
    data, store = content(LARGE), MemoryStore()
    store.begin(Digest.of(data), LARGE).write(data[:at])
    async with peers(data, endless(size), honest) as [a, b], pulling([a.holder, b.holder], store=store) as host:
        pulled = await host.get(Digest.of(data), f"bytes={at}-" if at else None)
        assert (pulled.body, pulled.whole) == (data[at:], True)
        assert host.mirror.metrics.quarantines.value() == quarantines


async def test_content_of_unknown_size_is_limited() -> None:
    data = content(LARGE)
    async with peers(data, endless(HUGE), honest) as [a, b], pulling([a.holder, b.holder]) as host:
        pulled = await host.get(Digest.of(data))
        assert (pulled.body, pulled.whole) == (data, True)
        assert host.mirror.metrics.limited.value("blob_size") == 1
        assert host.mirror.metrics.quarantines.value() == 1


@pytest.mark.parametrize("known", [True, False])
async def test_the_limit_is_for_unknown_sizes_only(known: bool) -> None:
    data = content(LARGE)
    manifest = manifest_with(Digest.of(data), LARGE)
    async with peers(manifest, honest) as [m], peers(data, honest) as [a]:
        router = FixedRouter(m.holder)
        async with pulling(router, blob_size=LARGE - 1) as host:
            if known:
                assert (await host.get(Digest.of(manifest), kind="manifests")).status == 200
            router.holders = (a.holder,)
            assert (await host.get(Digest.of(data))).status == (200 if known else 404)


@pytest.mark.parametrize("proxied", [only_chunked, unknown_length])
async def test_a_peer_that_states_no_length_is_not_quarantined(proxied: Script) -> None:
    data = content(SMALL)
    script = in_turn(proxied, honest)
    async with peers(data, script) as [a], pulling([a.holder]) as host:
        assert (await host.get(Digest.of(data))).status == 404
        assert host.mirror.metrics.quarantines.value() == 0
        assert (await host.get(Digest.of(data))).body == data


def test_sizes_are_known_from_a_manifest() -> None:
    sizes, one, two = KnownSizes(2), Digest.of(b"one"), Digest.of(b"two")
    sizes.add_manifest(
        json.dumps({"manifests": [{"digest": one, "size": 3}], "config": {"digest": two, "size": 4}}).encode()
    )
    assert (sizes.get(one), sizes.get(two), sizes.get(Digest.of(b"three"))) == (3, 4, None)
    sizes.add_manifest(json.dumps({"layers": [{"digest": Digest.of(b"three"), "size": 5}]}).encode())
    assert [sizes.get(Digest.of(name)) for name in (b"one", b"two", b"three")].count(None) == 1


@pytest.mark.parametrize("size", [-1, True, None, "3", 1.5, [], {}])
def test_an_invalid_size_is_ignored(size: object) -> None:
    sizes = KnownSizes()
    sizes.add_manifest(manifest_with(Digest.of(b"one"), size))
    assert sizes.get(Digest.of(b"one")) is None


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"[" * 100_000, b'{"layers": 1}', b'{"layers": [1, {"digest": "x", "size": 1}]}']
)
def test_invalid_manifests_are_ignored(data: bytes) -> None:
    KnownSizes().add_manifest(data)


def test_manifests_that_contradict_each_other_are_not_believed() -> None:
    sizes, one = KnownSizes(), Digest.of(b"one")
    for size in (3, 4, 3):
        sizes.add_manifest(manifest_with(one, size))
    assert sizes.get(one) is None
