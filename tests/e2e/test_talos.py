"""Peers that Talos has discovered, as it prints them: into a file, and to a process that runs beside gRPC's threads."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from tests.e2e.checks import MIB, assert_has
from tests.lab.containerd import NAMESPACE
from tests.lab.lab import Host, Lab
from tests.lab.processes import wait_for
from tests.lab.releases import each_release, release
from tests.routers.members import member, printed


@pytest.fixture(params=["file", "command"])
def way(request: pytest.FixtureRequest) -> str:
    """How Talos is asked for its members."""
    return str(request.param)


@pytest.fixture(params=each_release("2.4.2"))
def lab(request: pytest.FixtureRequest, way: str) -> Generator[Lab]:
    with Lab("a", "b", release=release(request.param)) as lab:
        if not lab.network.privileged:
            pytest.skip("on loopback all hosts have the same address, and Talos's all the same port")
        for host in lab.hosts.values():
            tell(lab, host, host)
            store = {"kind": "containerd", "address": str(host.containerd.socket), "namespaces": [NAMESPACE]}
            file = str(lab.directory / host.name / "members.json")
            source = {"file": file} if way == "file" else {"command": ["cat", file]}
            host.peili.start({"store": store, "router": {"kind": "talos", **source, "interval": 0.1}})
        yield lab


def tell(lab: Lab, host: Host, *members: Host) -> None:
    """Let `host` know these members, under ids that are Talos's and not peili's."""
    text = printed([member(f"node-{each.name}", "fe80::1", each.node.address) for each in members])
    (lab.directory / host.name / "members.json").write_text(text)


def test_an_image_is_pulled_from_a_member_once_it_is_one(lab: Lab) -> None:
    a, b = lab.hosts.values()
    published = lab.publish("library/by-digest", [MIB])
    a.containerd.pull(published.by_digest)
    lab.upstream.stop()
    blob = published.blob_url(published.image.config.digest)
    wait_for(lambda: b.can_fetch_from(a, blob), "a serves what it has")
    assert not b.can_find(blob), "b knows no other member yet"
    tell(lab, b, a, b)
    wait_for(lambda: b.can_find(blob), "b finds what a has")
    b.containerd.pull(published.by_digest)
    assert_has(b, published.image)
