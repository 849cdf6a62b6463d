"""The purpose of peili: one host has pulled an image, and the others pull it from that host."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from tests.e2e.checks import KIB, MIB, assert_has
from tests.lab.lab import Lab, RouterKind
from tests.lab.processes import wait_for
from tests.lab.releases import RELEASE_NAMES, ParameterSet, each_release, release
from tests.support.certificates import Authority

from peili.mirror.oci.children import host_platform
from peili.mirror.tls.key_file import create_key_file

PLATFORMS = (host_platform(), "linux/riscv64")


def setups() -> list[ParameterSet]:
    """Return each containerd release with static peers, and one release with mDNS, with a key and with certificates."""
    static = [
        pytest.param((*each.values, "static", "open"), marks=each.marks, id=f"{each.values[0]}-static")
        for each in each_release(*RELEASE_NAMES)
    ]
    others = [("mdns", "open"), ("mdns", "shared key"), ("static", "shared key"), ("static", "certificates")]
    return [
        *static,
        *(
            pytest.param((*each.values, *other), marks=each.marks, id=f"{each.values[0]}-{'-'.join(other)}")
            for each in each_release("trixie")
            for other in others
        ),
    ]


def start_peili(lab: Lab, router: RouterKind, access: str) -> None:
    """Start peili on all hosts, with peer doors that are open, or closed by a key or by certificates."""
    if access == "open":
        lab.start_peili(router=router)
    elif access == "shared key":
        create_key_file(lab.directory / "key")
        lab.start_peili(router=router, peer={"shared_key_file": str(lab.directory / "key")})
    else:
        authority = Authority(lab.directory / "authority")
        for name, host in lab.hosts.items():
            issued = authority.issue(lab.directory / "certificates" / name, host.node.address)
            lab.start_peili(name, router=router, peer={"tls": issued.files()})


@pytest.fixture(scope="module", params=setups())
def lab(request: pytest.FixtureRequest) -> Generator[Lab]:
    name, router, access = request.param
    with Lab("a", "b", "c", release=release(name)) as lab:
        start_peili(lab, router, access)
        yield lab


def test_an_image_is_pulled_by_digest_while_upstream_is_stopped(lab: Lab) -> None:
    a, b, c = lab.hosts.values()
    published = lab.publish("library/by-digest", [3 * MIB, 300 * KIB], platforms=PLATFORMS)
    a.containerd.pull(published.by_digest)
    lab.upstream.stop()
    try:
        wait_for(lambda: b.can_find(published.blob_url(published.image.config.digest)), "b finds what a has")
        b.containerd.pull(published.by_digest)
        assert_has(b, published.image)
        a.peili.process.freeze()  # so that c gets everything from b
        wait_for(lambda: c.can_find(published.blob_url(published.image.config.digest)), "c finds what b has")
        c.containerd.pull(published.by_digest)
        assert_has(c, published.image)
    finally:
        a.peili.process.resume()
        lab.upstream.start()


def test_upstream_only_resolves_the_tag_if_a_peer_has_the_image(lab: Lab) -> None:
    a, b, _ = lab.hosts.values()
    published = lab.publish("library/by-tag", [2 * MIB, 200 * KIB], platforms=PLATFORMS)
    a.containerd.pull(published.by_tag)
    wait_for(lambda: b.can_find(published.blob_url(published.image.config.digest)), "b finds what a has")
    before = lab.upstream.log_position()
    b.containerd.pull(published.by_tag)
    assert_has(b, published.image)
    assert published.by_tag in b.containerd.image_names()
    assert {(each.method, each.path) for each in lab.upstream.requests(before)} == {
        ("HEAD", "/v2/library/by-tag/manifests/v1")
    }
