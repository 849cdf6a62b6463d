"""A holder has a damaged blob. No wrong byte is committed, the holder is quarantined, and the next pull succeeds."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.e2e.checks import KIB, MIB, assert_has, assert_no_wrong_blob, flip_byte, wait_found
from tests.lab.access import chosen_access
from tests.lab.lab import Host, Lab
from tests.lab.namespaces import NamespaceNode
from tests.lab.processes import CommandFailed, wait_for
from tests.lab.releases import each_release, release
from tests.lab.upstream import Published

from peili.mirror import Digest

SMALL, LARGE = 100 * KIB, 9 * MIB
"""Bytes of a layer that is verified before its first byte is passed on, and of one that is verified on the way."""


@pytest.fixture(scope="module", params=each_release("installed", "2.4.2"))
def lab(request: pytest.FixtureRequest) -> Generator[Lab]:
    with Lab("honest", "puller", "bad-disk", release=release(request.param), access=chosen_access("key")) as lab:
        yield lab


@pytest.fixture(params=[SMALL, LARGE], ids=["small", "large"])
def published(lab: Lab, request: pytest.FixtureRequest) -> Generator[Published]:
    """An image whose layer has one changed byte on the faulty host. The puller and the faulty host run peili."""
    published = lab.publish("library/damaged", [request.param])
    lab.hosts["honest"].containerd.pull(published.by_digest)
    flip_byte(published.image.blob_path(published.image.layers[0].digest), request.param // 2)
    lab.start_peili("puller")
    lab.start_peili("bad-disk", store={"kind": "oci-layout", "path": str(published.image.path), "verify": False})
    wait_found(lab.hosts["puller"], published)
    yield published
    lab.stop_peili()
    lab.upstream.start()


def test_the_next_pull_succeeds_from_upstream(lab: Lab, published: Published) -> None:
    puller = lab.hosts["puller"]
    with suppress(CommandFailed):  # wrong bytes that were already passed on may fail this pull, but only this one
        puller.containerd.pull(published.by_digest)
    assert_no_wrong_blob(puller.containerd)
    assert quarantines(puller, lab.hosts["bad-disk"], published) == 1
    puller.containerd.pull(published.by_digest)
    assert_has(puller, published.image)
    assert quarantines(puller, lab.hosts["bad-disk"], published) == 1, "the faulty host was used again"


def test_the_next_pull_succeeds_from_another_peer(lab: Lab, published: Published) -> None:
    puller = lab.hosts["puller"]
    lab.upstream.stop()
    with pytest.raises(CommandFailed):
        puller.containerd.pull(published.by_digest)
    assert_no_wrong_blob(puller.containerd)
    assert quarantines(puller, lab.hosts["bad-disk"], published) == 1
    lab.start_peili("honest")
    wait_for(lambda: can_pull(puller, published), "the pull succeeds from the honest peer", pause=0.5)
    assert_has(puller, published.image)
    assert_no_wrong_blob(puller.containerd)
    assert quarantines(puller, lab.hosts["bad-disk"], published) == 1, "the faulty host was used again"


def test_a_wrong_ingest_that_upstream_completes_fails_one_pull_only(lab: Lab) -> None:
    """The client is killed; the next one fetches the rest from upstream, where the relay sees nothing."""
    feeder, puller = lab.hosts["honest"], lab.hosts["puller"]
    if not isinstance(lab.upstream.node, NamespaceNode):
        pytest.skip("the rate of loopback can't be limited, so the transfer would end too early")
    lab.start_peili("honest", "puller")
    own = lab.publish("library/own", [KIB])
    feeder.containerd.pull(own.by_digest)
    wait_found(puller, own)  # so it knows the feeder
    published = lab.publish("library/completed", [16 * MIB])
    [layer] = published.image.layers
    lab.upstream.node.limit_rate("8mbit")  # so that it is still arriving if this process stands still for some seconds
    pull_of_feeder = feeder.containerd.start_pull(published.by_digest)
    path = receiving(feeder, layer.digest)
    flip_byte(path, MIB // 2)
    pull = puller.containerd.start_local_pull(published.by_digest)
    copy = receiving(puller, layer.digest)
    assert byte_of(copy, MIB // 2) == byte_of(path, MIB // 2), "the puller was sent upstream, too"
    for each in (pull, feeder.peili, pull_of_feeder):
        each.kill()
    lab.upstream.node.limit_rate("10gbit")
    with pytest.raises(CommandFailed):  # it continues the ingest, with the rest from upstream
        puller.containerd.pull(published.by_digest)
    # containerd keeps the ingest for a day, because the client was killed.
    wait_for(lambda: puller.containerd.unfinished_path(layer.digest) is None, "the wrong ingest is removed")
    puller.containerd.pull(published.by_digest)
    assert_has(puller, published.image)
    assert_no_wrong_blob(puller.containerd)
    lab.stop_peili()


def receiving(host: Host, digest: Digest) -> Path:
    """Wait until `host` has received the first MiB of a layer. Return the file of its ingest."""
    wait_for(lambda: host.containerd.received_bytes(digest) >= MIB, f"{host.name} receives the layer")
    path = host.containerd.unfinished_path(digest)
    assert path is not None
    return path


def byte_of(path: Path, offset: int) -> bytes:
    """Return one byte of a file."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(1)


def quarantines(host: Host, faulty: Host, published: Published) -> int:
    """Return how often `host` has logged that it quarantines `faulty` for the layer."""
    [layer] = published.image.layers
    lines = [line for line in host.peili.log().splitlines() if "quarantine" in line and layer.digest in line]
    return sum(faulty.name in line or faulty.peili.peer in line for line in lines)


def can_pull(host: Host, published: Published) -> bool:
    """Pull the image, and return whether that succeeds."""
    try:
        host.containerd.pull(published.by_digest)
    except CommandFailed:
        return False
    return True
