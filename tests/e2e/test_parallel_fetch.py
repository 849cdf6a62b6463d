"""Runtimes that fetch a layer in parallel ranges: peers send these ranges, and peili verifies the layer."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from tests.e2e.checks import MIB, assert_has, assert_no_wrong_blob, flip_byte, wait_found
from tests.lab.lab import Host, Lab
from tests.lab.namespaces import NamespaceNode
from tests.lab.processes import CommandFailed, run, wait_for
from tests.lab.releases import each_release, release

SIZE = 48 * MIB
MAX_TRAFFIC_RATIO = 1.2
"""The most that a holder may send, as a multiple of the image's size. docker-registry itself sends about twice that."""


PARALLELISM = {"trixie": (3, 0), "2.1.4": (20, MIB), "forky": (4, 4 * MIB), "2.4.2": (3, MIB)}
"""For each release: how many layers or ranges it fetches at once, and the bytes of a range.

0 bytes are whole layers; containerd 1.7 has no ranges. containerd 2.1.4 tries no other host if the answer to a later
range has a status other than 2xx.
"""


@pytest.fixture(scope="module", params=each_release(*PARALLELISM))
def lab(request: pytest.FixtureRequest) -> Generator[Lab]:
    concurrency, size = PARALLELISM.get(request.param, (3, MIB))
    settings = f'[plugins."io.containerd.transfer.v1.local"]\nmax_concurrent_downloads = {concurrency}\n'
    if size:
        settings += f"concurrent_layer_fetch_buffer = {size}\n"
    with Lab("holder", "puller", release=release(request.param), settings=settings) as lab:
        if not isinstance(lab.upstream.node, NamespaceNode):
            pytest.skip("on loopback, the kernel does not count what each host sends")
        yield lab


def test_a_holder_sends_an_image_only_about_once(lab: Lab) -> None:
    holder, puller = lab.hosts.values()
    lab.start_peili()
    published = lab.publish("library/parallel", [SIZE, SIZE])
    holder.containerd.pull(published.by_digest)
    lab.upstream.stop()
    try:
        wait_found(puller, published)
        before = sent_bytes(holder)
        puller.containerd.pull(published.by_digest)
        assert sent_bytes(holder) - before < MAX_TRAFFIC_RATIO * 2 * SIZE
        assert_has(puller, published.image)
        assert "unverified" not in puller.peili.log()
    finally:
        lab.upstream.start()
        lab.stop_peili()


def test_a_resumed_pull_from_a_faulty_holder_fails_only_once(lab: Lab) -> None:
    holder, puller = lab.hosts.values()
    published = lab.publish("library/resumed", [SIZE])
    [layer] = published.image.layers
    start_pull_and_kill(lab, puller, published.by_digest, layer.digest)
    assert 0 < puller.containerd.received_bytes(layer.digest) < SIZE // 2
    flip_byte(published.image.blob_path(layer.digest), SIZE * 3 // 4)
    lab.start_peili("holder", store={"kind": "oci-layout", "path": str(published.image.path), "verify": False})
    lab.start_peili("puller")
    blob = published.blob_url(layer.digest)
    wait_for(lambda: puller.can_fetch_from(holder, blob), "the holder serves the damaged layer")
    wait_found(puller, published)
    with pytest.raises(CommandFailed):
        puller.containerd.pull(published.by_digest)
    assert_no_wrong_blob(puller.containerd)
    removed = "removed the runtime's unfinished copy"
    wait_for(lambda: removed in puller.peili.log(), "the copy with the wrong byte is removed")
    puller.containerd.pull(published.by_digest)
    assert_has(puller, published.image)
    lab.stop_peili()


def start_pull_and_kill(lab: Lab, host: Host, name: str, digest: str) -> None:
    """Start a pull, and kill it when the host's containerd has the first bytes of the layer."""
    assert isinstance(lab.upstream.node, NamespaceNode)
    lab.upstream.node.limit_rate("20mbit")  # half of the layer takes ten seconds, even if this process stands still
    pull = host.containerd.start_pull(name)
    wait_for(lambda: host.containerd.received_bytes(digest) >= 4 * MIB, "the layer arrives", pause=0.005)
    pull.kill()  # containerd notices that later, and must not have the rest by then
    wait_for(lambda: not host.containerd.is_fetching(), "containerd has stopped fetching")
    lab.upstream.node.limit_rate("10gbit")


def sent_bytes(host: Host) -> int:
    """Return how many bytes the network interface of a host has sent."""
    return int(run(host.node.command(["cat", "/sys/class/net/eth0/statistics/tx_bytes"])))
