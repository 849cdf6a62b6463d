"""A peer whose store is damaged: nothing wrong is committed, the peer is left out, and the pull is mended elsewhere."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress

import pytest
from tests.e2e.checks import KIB, MIB, assert_has, assert_nothing_wrong, flip_byte
from tests.lab.lab import Host, Lab
from tests.lab.processes import CommandFailed, wait_for
from tests.lab.releases import each_release, release
from tests.lab.upstream import Published

SMALL, LARGE = 100 * KIB, 9 * MIB
"""One is verified before its first byte is passed on, the other is on its way by then."""


@pytest.fixture(scope="module", params=each_release("installed", "2.4.2"))
def lab(request: pytest.FixtureRequest) -> Generator[Lab]:
    with Lab("honest", "puller", "liar", release=release(request.param)) as lab:
        yield lab


@pytest.fixture(params=[SMALL, LARGE], ids=["small", "large"])
def published(lab: Lab, request: pytest.FixtureRequest) -> Generator[Published]:
    """An image of which the liar has the layer with one byte changed. The puller and the liar run peili."""
    published = lab.publish("library/damaged", [request.param])
    lab.hosts["honest"].containerd.pull(published.by_digest)
    flip_byte(published.image.blob_path(published.image.layers[0].digest), request.param // 2)
    lab.start_peili("puller")
    lab.start_peili("liar", store={"kind": "oci-layout", "path": str(published.image.path), "verify": False})
    yield published
    lab.stop_peili()
    lab.upstream.start()


def test_the_pull_is_mended_upstream(lab: Lab, published: Published) -> None:
    puller = lab.hosts["puller"]
    with suppress(CommandFailed):  # the bytes that are there already may cost this one pull, no more
        puller.containerd.pull(published.by_digest)
    assert_nothing_wrong(puller.containerd)
    assert quarantines(puller, lab.hosts["liar"], published) == 1
    puller.containerd.pull(published.by_digest)
    assert_has(puller, published.image)
    assert quarantines(puller, lab.hosts["liar"], published) == 1, "the liar was asked again"


def test_the_pull_is_mended_by_another_peer(lab: Lab, published: Published) -> None:
    puller = lab.hosts["puller"]
    lab.upstream.stop()
    with pytest.raises(CommandFailed):
        puller.containerd.pull(published.by_digest)
    assert_nothing_wrong(puller.containerd)
    assert quarantines(puller, lab.hosts["liar"], published) == 1
    lab.start_peili("honest")
    wait_for(lambda: pulls(puller, published), "the pull completes from the honest peer", pause=0.5)
    assert_has(puller, published.image)
    assert_nothing_wrong(puller.containerd)
    assert quarantines(puller, lab.hosts["liar"], published) == 1, "the liar was asked again"


def quarantines(host: Host, liar: Host, published: Published) -> int:
    """How often `host` has logged that it quarantines `liar` for the layer."""
    [layer] = published.image.layers
    lines = [line for line in host.peili.log().splitlines() if "quarantine" in line and layer.digest in line]
    return sum(liar.name in line or liar.peili.peer in line for line in lines)


def pulls(host: Host, published: Published) -> bool:
    """Whether a pull succeeds now."""
    try:
        host.containerd.pull(published.by_digest)
    except CommandFailed:
        return False
    return True
