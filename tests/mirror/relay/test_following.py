"""A host that got a manifest from another host says so when it asks for what the manifest names."""

from __future__ import annotations

import json

import pytest
from tests.mirror.relay.peers import honest, peers
from tests.mirror.relay.pulling import AdvisingRouter, pulling
from tests.support.clock import Clock

from peili.mirror import Digest, Feed, Upstream
from peili.mirror.oci.references import OCI_MANIFEST
from peili.mirror.relay.following import FollowedContent

pytestmark = pytest.mark.anyio

ONE, TWO = Digest.of(b"one"), Digest.of(b"two")


def test_content_is_followed_until_this_host_was_sent_upstream_for_some_of_it() -> None:
    followed = FollowedContent(Clock(0.0))
    assert ONE not in followed
    followed.add([ONE, TWO])
    followed.add([Digest.of(b"three")])
    assert ONE in followed
    followed.give_up(TWO)
    followed.give_up(ONE)  # of the same manifest
    assert ONE not in followed
    assert Digest.of(b"three") in followed
    followed.add([ONE])
    assert ONE in followed
    assert TWO not in followed


def test_after_two_manifests_in_vain_nobody_is_followed_for_a_while() -> None:
    """Runtimes may keep manifests and discard layers. Each pull would then wait for a second."""
    clock = Clock(0.0)
    followed = FollowedContent(clock)
    for digest in (ONE, TWO):
        followed.add([digest])
        assert digest in followed
        followed.give_up(digest)
    followed.add([ONE])
    assert ONE not in followed
    clock.now = 301
    followed.add([ONE])
    assert ONE in followed


def test_a_manifest_that_was_not_followed_in_vain_counts_between_two_that_were() -> None:
    followed = FollowedContent(Clock(0.0))
    for number in range(10):
        digest = Digest.of(str(number).encode())
        followed.add([digest])
        assert digest in followed
        (followed.confirm if number % 2 else followed.give_up)(digest)


def test_content_is_not_followed_for_ever() -> None:
    clock = Clock(0.0)
    followed = FollowedContent(clock)
    followed.add([ONE])
    clock.now = 299
    assert ONE in followed
    clock.now = 301
    assert ONE not in followed


def manifest() -> bytes:
    layers = [{"digest": each, "size": 3} for each in (ONE, TWO)]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": layers[0], "layers": layers}).encode()


async def test_what_a_manifest_from_another_host_names_is_followed() -> None:
    data = manifest()
    async with peers(data, honest) as [a]:
        router = AdvisingRouter(Upstream(), Feed((a.holder,)), Upstream())
        async with pulling(router) as host:
            assert (await host.get(ONE)).status == 404
            assert (await host.get(Digest.of(data), kind="manifests")).body == data
            for digest in (ONE, TWO):
                assert (await host.get(digest)).status == 404
    assert [want.follows for want in router.wants if want.key in {ONE, TWO}] == [False, True, False]


async def test_a_runtime_that_only_asks_whether_there_is_content_still_follows() -> None:
    """Docker and others ask for a layer with HEAD before they fetch it."""
    data = manifest()
    async with peers(data, honest) as [a]:
        router = AdvisingRouter(Feed((a.holder,)), Upstream())
        async with pulling(router) as host:
            assert (await host.get(Digest.of(data), kind="manifests")).body == data
            assert (await host.get(ONE, method="HEAD")).status == 404
            assert (await host.get(ONE)).status == 404
    assert router.wants[-1].follows
