"""Hosts pull an image that none of them has. Upstream sends it once, and it streams through the hosts as it arrives."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pytest
from tests.e2e.checks import KIB, MIB, assert_has, assert_shared
from tests.lab.lab import GENEROUS_LIMITS, Host, Lab
from tests.lab.namespaces import NamespaceNode
from tests.lab.pulls import Pulls
from tests.lab.releases import each_release, release

RATE, SLOW_RATE = "80mbit", "40mbit"
"""The rate of all links, and one at which upstream needs five seconds for a large layer."""

EACH_CLIENT = pytest.mark.parametrize("lab", each_release("installed", "forky"), indirect=True)
"""ctr fetches with the first release, and the daemon with the second one."""


@pytest.fixture(scope="module", params=each_release("installed"))
def lab(request: pytest.FixtureRequest) -> Generator[Lab]:
    """Four hosts whose containerds have never stored anything."""
    with Lab("a", "b", "c", "d", release=release(request.param)) as lab:
        for node in (lab.upstream.node, *(host.node for host in lab.hosts.values())):
            if not isinstance(node, NamespaceNode):
                pytest.skip("the rate of loopback can't be limited, so a layer would arrive at once")
            node.limit_link(RATE)
        lab.start_peili(limits={**GENEROUS_LIMITS, "claim_timeout": 10})
        yield lab


def limit_upstream(lab: Lab, rate: str) -> None:
    assert isinstance(lab.upstream.node, NamespaceNode)
    lab.upstream.node.limit_rate(rate)


def start(lab: Lab, layers: Sequence[int], hosts: Sequence[Host]) -> Pulls:
    """Start pulls of a new image on all hosts. The first host starts when it is the only one."""
    pulls = Pulls(lab.publish("library/cold", layers), [lab.upstream])
    pulls.start(hosts[:1])
    pulls.wait_until(lambda: pulls.received(hosts[0]) > 0)
    pulls.start(hosts[1:])
    return pulls


@EACH_CLIENT
def test_upstream_sends_one_copy_to_hosts_that_start_at_once(lab: Lab) -> None:
    assert_shared(lab, [6 * MIB, 3 * MIB, 100 * KIB], most_copies=1.05)


@EACH_CLIENT
def test_upstream_sends_many_layers_about_once(lab: Lab) -> None:
    """The daemon of the second release asks for all layers at once, and fetches only three at a time.

    If each host is sent upstream for some layers, all of them wait for layers that nobody fetches, and then fetch them
    several times.
    """
    assert_shared(lab, [256 * KIB] * 20, most_copies=1.5)


@EACH_CLIENT
def test_hosts_that_join_later_read_what_is_there(lab: Lab) -> None:
    assert_shared(lab, [8 * MIB], most_copies=1.05, interval=0.3)


@pytest.mark.parametrize("process", ["client", "peili", "containerd"])
def test_the_others_go_on_when_the_first_host_is_lost(lab: Lab, process: str) -> None:
    first, *others = lab.hosts.values()
    limit_upstream(lab, SLOW_RATE)
    pulls = start(lab, [24 * MIB], [first, *others])
    pulls.wait_until(lambda: pulls.received(first) >= 4 * MIB, pause=0.005)
    match process:
        case "client":
            pulls.running[first.name].kill()
        case "peili":
            first.peili.kill()
        case _:
            first.containerd.process.kill()
    limit_upstream(lab, RATE)
    pulls.wait()
    assert pulls.failed.keys() <= {first.name}
    for host in others:
        assert_has(host, pulls.image.image)
    assert pulls.copies() < len(others), "the others fetched it from upstream, each for itself"
    if process == "peili":
        lab.start_peili(first.name)
    elif process == "containerd":
        first.containerd.start()
