"""The purpose of peili: one host has pulled an image, and the others pull it from that host."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from tests.e2e.checks import KIB, MIB, assert_has, wait_found, wait_sent
from tests.lab.lab import Lab
from tests.lab.releases import RELEASE_NAMES, ParameterSet, each_release, release

from peili.mirror.oci.children import host_platform

PLATFORMS = (host_platform(), "linux/riscv64")


def setups() -> list[ParameterSet]:
    """Return each containerd release with static peers, and one release with mDNS, with a key and with certificates."""
    static = [
        pytest.param((*each.values, "static", None), marks=each.marks, id=f"{each.values[0]}-static")
        for each in each_release(*RELEASE_NAMES)
    ]
    others = [("mdns", "open"), ("mdns", "key"), ("static", "key"), ("static", "certificates")]
    return [
        *static,
        *(
            pytest.param((*each.values, *other), marks=each.marks, id=f"{each.values[0]}-{'-'.join(other)}")
            for each in each_release("trixie")
            for other in others
        ),
    ]


@pytest.fixture(scope="module", params=setups())
def lab(request: pytest.FixtureRequest) -> Generator[Lab]:
    name, router, access = request.param
    with Lab("a", "b", "c", release=release(name), access=access) as lab:
        lab.start_peili(router=router)
        yield lab


def test_an_image_is_pulled_by_digest_while_upstream_is_stopped(lab: Lab) -> None:
    a, b, c = lab.hosts.values()
    published = lab.publish("library/by-digest", [3 * MIB, 300 * KIB], platforms=PLATFORMS)
    a.containerd.pull(published.by_digest)
    lab.upstream.stop()
    try:
        wait_found(b, published)
        b.containerd.pull(published.by_digest)
        assert_has(b, published.image)
        a.peili.process.freeze()  # so that c gets everything from b
        wait_sent(c, published)
        c.containerd.pull(published.by_digest)
        assert_has(c, published.image)
    finally:
        a.peili.process.resume()
        lab.upstream.start()


def test_upstream_only_resolves_the_tag_if_a_peer_has_the_image(lab: Lab) -> None:
    a, b, _ = lab.hosts.values()
    published = lab.publish("library/by-tag", [2 * MIB, 200 * KIB], platforms=PLATFORMS)
    a.containerd.pull(published.by_tag)
    wait_found(b, published)
    before = lab.upstream.log_position()
    b.containerd.pull(published.by_tag)
    assert_has(b, published.image)
    assert published.by_tag in b.containerd.image_names()
    assert {(each.method, each.path) for each in lab.upstream.requests(before)} == {
        ("HEAD", "/v2/library/by-tag/manifests/v1")
    }
