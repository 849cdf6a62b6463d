"""Peers that Talos has discovered. The router reads them from a file, or runs a command while gRPC threads exist."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from tests.e2e.checks import MIB, assert_has, wait_found
from tests.lab.access import chosen_access
from tests.lab.lab import Host, Lab
from tests.lab.processes import wait_for
from tests.lab.releases import each_release, release
from tests.routers.talos_output import member, printed


@pytest.fixture(params=["file", "command"])
def source(request: pytest.FixtureRequest) -> str:
    """The option of the router that says where the members come from."""
    return str(request.param)


@pytest.fixture(params=each_release("2.4.2"))
def lab(request: pytest.FixtureRequest, source: str) -> Generator[Lab]:
    with Lab("a", "b", release=release(request.param), access=chosen_access("key")) as lab:
        if not lab.network.privileged:
            pytest.skip("all members of Talos have the same port, which is impossible on loopback")
        for host in lab.hosts.values():
            write_members(lab, host, host)
            file = str(lab.directory / host.name / "members.json")
            options = {"file": file} if source == "file" else {"command": ["cat", file]}
            lab.start_peili(host.name, router={"kind": "talos", **options, "interval": 0.1})
        yield lab


def write_members(lab: Lab, host: Host, *members: Host) -> None:
    """Write the members that `host` knows, with ids of Talos, which peili does not use."""
    text = printed([member(f"node-{each.name}", "fe80::1", each.node.address) for each in members])
    (lab.directory / host.name / "members.json").write_text(text)


def test_an_image_is_pulled_from_a_host_after_it_becomes_a_member(lab: Lab) -> None:
    a, b = lab.hosts.values()
    published = lab.publish("library/by-digest", [MIB])
    a.containerd.pull(published.by_digest)
    lab.upstream.stop()
    blob = published.blob_url(published.image.config.digest)
    wait_for(lambda: b.can_fetch_from(a, blob), "a serves what it has")
    assert not b.can_find(blob), "b knows no other member yet"
    write_members(lab, b, a, b)
    wait_found(b, published)
    b.containerd.pull(published.by_digest)
    assert_has(b, published.image)
