"""Runtimes that fetch one layer in parallel ranges: peers serve them, and what comes is verified."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from tests.e2e.checks import MIB, assert_has, assert_nothing_wrong, flip_byte
from tests.lab.lab import Host, Lab
from tests.lab.namespaces import NamespaceNode
from tests.lab.processes import CommandFailed, run, wait_for
from tests.lab.releases import each_release, release

SIZE = 48 * MIB
WASTE = 1.2
"""Times the image's size: asked directly, docker-registry sends about twice the image."""


WAYS = {"trixie": (3, 0), "2.1.4": (20, MIB), "forky": (4, 4 * MIB), "2.4.2": (3, MIB)}
"""Versions, how many layers or ranges at once, and how large these are; 0: whole layers, all that 1.7 can do. After any
answer but 2xx to a later range, 2.1.4 asks nobody else.
"""


@pytest.fixture(scope="module", params=each_release(*WAYS))
def lab(request: pytest.FixtureRequest) -> Generator[Lab]:
    at_once, size = WAYS.get(request.param, (3, MIB))
    settings = f'[plugins."io.containerd.transfer.v1.local"]\nmax_concurrent_downloads = {at_once}\n'
    if size:
        settings += f"concurrent_layer_fetch_buffer = {size}\n"
    with Lab("holder", "puller", release=release(request.param), settings=settings) as lab:
        if not isinstance(lab.upstream.node, NamespaceNode):
            pytest.skip("what a host sends is not counted on loopback")
        yield lab


def test_a_holder_sends_an_image_about_once(lab: Lab) -> None:
    holder, puller = lab.hosts.values()
    lab.start_peili()
    published = lab.publish("library/parallel", [SIZE, SIZE])
    holder.containerd.pull(published.by_digest)
    lab.upstream.stop()
    try:
        wait_for(
            lambda: puller.can_find(published.blob_url(published.image.config.digest)), "the puller finds the image"
        )
        before = sent(holder)
        puller.containerd.pull(published.by_digest)
        assert sent(holder) - before < WASTE * 2 * SIZE
        assert_has(puller, published.image)
        assert "unverified" not in puller.peili.log()
    finally:
        lab.upstream.start()
        lab.stop_peili()


def test_a_pull_that_was_killed_and_goes_on_from_a_liar_fails_once(lab: Lab) -> None:
    holder, puller = lab.hosts.values()
    published = lab.publish("library/resumed", [SIZE])
    [layer] = published.image.layers
    begin_and_kill(lab, puller, published.by_digest, layer.digest)
    had = puller.containerd.received_bytes(layer.digest)
    assert 0 < had < SIZE // 2
    flip_byte(published.image.blob_path(layer.digest), SIZE * 3 // 4)
    lab.start_peili("holder", store={"kind": "oci-layout", "path": str(published.image.path), "verify": False})
    lab.start_peili("puller")
    blob = published.blob_url(layer.digest)
    wait_for(lambda: puller.can_fetch_from(holder, blob), "the liar serves what it has")
    with pytest.raises(CommandFailed):
        puller.containerd.pull(published.by_digest)
    assert_nothing_wrong(puller.containerd)
    assert "removed the runtime's unfinished copy" in puller.peili.log()
    puller.containerd.pull(published.by_digest)
    assert_has(puller, published.image)
    lab.stop_peili()


def begin_and_kill(lab: Lab, host: Host, name: str, digest: str) -> None:
    """Leave the beginning of a layer in the host's containerd, as a pull does that is killed."""
    assert isinstance(lab.upstream.node, NamespaceNode)
    lab.upstream.node.limit_rate("80mbit")
    pull = host.containerd.start_pull(name)
    wait_for(lambda: host.containerd.received_bytes(digest) >= 4 * MIB, "the layer arrives", pause=0.005)
    pull.kill()
    lab.upstream.node.limit_rate("10gbit")
    wait_for(lambda: not host.containerd.is_fetching(), "containerd has given the pull up")


def sent(host: Host) -> int:
    """The bytes that a host's interface has sent."""
    return int(run(host.node.command(["cat", "/sys/class/net/eth0/statistics/tx_bytes"])))
