"""Pulls through the CRI API, as Kubernetes does them, come from a peer on every containerd release."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from tests.e2e.checks import KIB, MIB, assert_has, wait_found
from tests.lab.lab import Lab, make_network
from tests.lab.releases import RELEASE_NAMES, each_release, release

LOCAL_IMAGE_PULL = '[plugins."io.containerd.cri.v1.images"]\nuse_local_image_pull = true\n'
"""Without this setting, containerd 2.4 does not read hosts.toml for pulls through CRI."""


@pytest.fixture(scope="module", params=each_release(*RELEASE_NAMES))
def lab(request: pytest.FixtureRequest) -> Generator[Lab]:
    with make_network() as network:
        if not network.privileged:
            pytest.skip("containerd's CRI plug-in needs root")
    settings = LOCAL_IMAGE_PULL if request.param == "2.4.2" else ""
    with Lab("a", "b", release=release(request.param), with_cri=True, settings=settings) as lab:
        yield lab


def test_a_pull_by_cri_comes_from_a_peer_that_pulled_by_cri(lab: Lab) -> None:
    a, b = lab.hosts.values()
    lab.start_peili()
    published = lab.publish("library/pod", [2 * MIB, 300 * KIB])
    a.containerd.cri_pull(published.by_tag)
    wait_found(b, published)
    before = lab.upstream.log_position()
    b.containerd.cri_pull(published.by_tag)
    assert_has(b, published.image)
    assert not lab.upstream.blobs_sent(before)
    for host in (a, b):
        assert {blob.digest for blob in published.image.blobs} <= host.containerd.fetched_digests()
