"""The holder that sends a layer dies in the middle of it. Another holder sends the rest, and upstream is not needed."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from tests.e2e.checks import MIB, assert_has, wait_found
from tests.lab.access import chosen_access
from tests.lab.lab import Host, Lab
from tests.lab.namespaces import NamespaceNode
from tests.lab.processes import wait_for
from tests.lab.releases import each_release, release
from tests.lab.upstream import Published

SIZE = 96 * MIB
"""Bytes of a layer that is larger than all buffers between two hosts."""
SLOW, FAST = "40mbit", "10gbit"
"""How fast holders send. At the slow rate, the layer takes 20 seconds."""


@pytest.fixture(scope="module", params=each_release("2.1.4"))
def lab(request: pytest.FixtureRequest) -> Generator[Lab]:
    with Lab("a", "b", "c", release=release(request.param), access=chosen_access("certificates")) as lab:
        yield lab


@pytest.fixture
def published(lab: Lab) -> Generator[Published]:
    """A large layer that a and c hold. Upstream is stopped."""
    a, _, c = lab.hosts.values()
    lab.start_peili()
    published = lab.publish("library/large", [SIZE])
    for host in (a, c):
        host.containerd.pull(published.by_digest)
    wait_found(lab.hosts["b"], published)
    lab.upstream.stop()
    yield published
    lab.upstream.start()
    lab.stop_peili()


def test_a_pull_whose_runtime_is_frozen_continues_from_another_holder(lab: Lab, published: Published) -> None:
    b = lab.hosts["b"]
    [layer] = published.image.layers
    limit_holders(lab, SLOW)
    pull = b.containerd.start_pull_and_freeze(published.by_digest, layer)
    kill_sender(lab, published)
    limit_holders(lab, FAST)
    pull.resume()
    pull.succeed()
    assert_has(b, published.image)


def test_a_running_pull_continues_from_another_holder(lab: Lab, published: Published) -> None:
    b = lab.hosts["b"]
    limit_holders(lab, SLOW)
    pull = b.containerd.start_pull(published.by_digest)
    [layer] = published.image.layers
    wait_for(lambda: b.containerd.received_bytes(layer.digest) >= 8 * MIB, "the layer arrives", pause=0.005)
    kill_sender(lab, published)
    assert b.containerd.received_bytes(layer.digest) < layer.size
    limit_holders(lab, FAST)
    pull.succeed()
    assert_has(b, published.image)


def limit_holders(lab: Lab, rate: str) -> None:
    """Limit what each holder sends."""
    for name in ("a", "c"):
        node = lab.hosts[name].node
        if not isinstance(node, NamespaceNode):
            pytest.skip("the rate of loopback can't be limited, so the transfer would end too early")
        node.limit_rate(rate)


def kill_sender(lab: Lab, published: Published) -> None:
    """Kill the peili that sends the layer. It is the only one that has the blob's file open."""
    [layer] = published.image.layers

    def senders() -> list[Host]:
        hosts = (lab.hosts["a"], lab.hosts["c"])
        return [host for host in hosts if host.peili.has_open(host.containerd.blob_path(layer.digest))]

    wait_for(lambda: len(senders()) == 1, "one holder sends the layer")
    [sender] = senders()
    sender.peili.kill()
