"""A host serves a layer to its peers while its own runtime still receives it from a slow upstream."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Generator

import pytest
from tests.e2e.checks import MIB, assert_has
from tests.lab.access import chosen_access
from tests.lab.lab import Host, Lab
from tests.lab.namespaces import NamespaceNode
from tests.lab.processes import wait_for
from tests.lab.releases import each_release, release

SIZE = 16 * MIB
SLOW, FAST = "8mbit", "10gbit"
"""How fast upstream sends. At the slow rate, a layer takes 16 seconds, so that a test sees it arrive even if it stands
still for some seconds. It is not received at that rate to its end.
"""
SETTINGS = """\
[plugins."io.containerd.transfer.v1.local"]
max_concurrent_downloads = 4
concurrent_layer_fetch_buffer = 1048576
"""
"""Ranges of 1 MiB, four at once; for releases that have parallel fetching."""


@pytest.fixture(scope="module", params=each_release("trixie", "2.1.4", "forky"))
def lab(request: pytest.FixtureRequest) -> Generator[Lab]:
    parallel = request.param == "2.1.4"
    settings, access = SETTINGS if parallel else "", chosen_access("certificates" if parallel else "open")
    with Lab("puller", "child", release=release(request.param), settings=settings, access=access) as lab:
        if not isinstance(lab.upstream.node, NamespaceNode):
            pytest.skip("the rate of loopback can't be limited, so the transfer would end too early")
        lab.start_peili()
        yield lab


class Child(threading.Thread):
    """Reads a blob in flight from the peer door of `puller`, as another host.

    Attributes:
        status: The status of the response, once it is known.
        headers: Its headers.
        received: How many bytes have arrived.
        sha256: Their digest.
        is_whole: Whether the response was not cut off. Only after the thread has ended.
    """

    def __init__(self, child: Host, puller: Host, path: str, byte_range: str | None = None) -> None:
        super().__init__()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.received = 0
        self.sha256 = hashlib.sha256()
        self.is_whole = False
        self._request = {"Peili-In-Flight": "1"} | ({} if byte_range is None else {"Range": byte_range})
        self._path = path
        self._connection = child.connect_to(puller)

    def run(self) -> None:
        self._connection.request("GET", self._path, headers=self._request)
        response = self._connection.getresponse()
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.status = response.status
        while piece := response.read1(MIB):  # at a cut, this is empty, too
            self.sha256.update(piece)
            self.received += len(piece)
        self.is_whole = self.received == int(self.headers["content-length"])
        self._connection.close()


def test_a_layer_streams_through_a_host(lab: Lab) -> None:
    puller, child = lab.hosts.values()
    published = lab.publish("library/streams", [SIZE])
    [layer] = published.image.layers
    path = published.blob_url(layer.digest)
    assert isinstance(lab.upstream.node, NamespaceNode)
    lab.upstream.node.limit_rate(SLOW)
    pull = puller.containerd.start_pull(published.by_digest)
    wait_for(lambda: puller.containerd.received_bytes(layer.digest) >= MIB, "the layer arrives", pause=0.005)
    assert not puller.can_find(path), "the local door serves its own unfinished copy"
    assert not child.can_fetch_from(puller, path), "the peer door serves an unfinished copy without the header"
    whole, rest = Child(child, puller, path), Child(child, puller, path, f"bytes={SIZE // 2}-")
    for each in (whole, rest):
        each.start()
    wait_for(lambda: 0 < whole.received < SIZE // 2, "the child receives the first bytes", pause=0.005)
    assert puller.containerd.received_bytes(layer.digest) > 0, "the puller has not committed the layer yet"
    lab.upstream.node.limit_rate(FAST)
    pull.succeed()
    for each in (whole, rest):
        each.join()
    assert (whole.status, whole.received, whole.is_whole) == (200, layer.size, True)
    assert f"sha256:{whole.sha256.hexdigest()}" == layer.digest
    assert whole.headers["peili-complete"] == "false"
    assert 0 < int(whole.headers["peili-available"]) < layer.size
    assert (rest.status, rest.received, rest.is_whole) == (206, layer.size - SIZE // 2, True)
    assert (
        rest.sha256.digest()
        == hashlib.sha256(published.image.blob_path(layer.digest).read_bytes()[SIZE // 2 :]).digest()
    )
    assert_has(puller, published.image)


def test_a_killed_pull_cuts_its_children_off(lab: Lab) -> None:
    puller, child = lab.hosts.values()
    published = lab.publish("library/killed", [SIZE])
    [layer] = published.image.layers
    assert isinstance(lab.upstream.node, NamespaceNode)
    lab.upstream.node.limit_rate(SLOW)
    pull = puller.containerd.start_pull(published.by_digest)
    wait_for(lambda: puller.containerd.received_bytes(layer.digest) >= MIB, "the layer arrives", pause=0.005)
    whole = Child(child, puller, published.blob_url(layer.digest))
    whole.start()
    wait_for(lambda: whole.received > 0, "the child receives the first bytes", pause=0.005)
    pull.kill()
    whole.join()
    lab.upstream.node.limit_rate(FAST)
    assert not whole.is_whole
    assert 0 < whole.received < SIZE
    data = published.image.blob_path(layer.digest).read_bytes()
    assert whole.sha256.digest() == hashlib.sha256(data[: whole.received]).digest()
    puller.containerd.pull(published.by_digest)
    assert_has(puller, published.image)
