"""peili never makes a pull worse, even if no peer has the image or peili does not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator

import pytest
from tests.e2e.checks import MIB, assert_has, wait_found
from tests.lab.access import chosen_access
from tests.lab.lab import Host, Lab
from tests.lab.processes import CommandFailed
from tests.lab.releases import each_release, release

LAYERS = [4 * MIB] * 3
WAITS = ("lookup_timeout", "connect_timeout", "first_byte_timeout", "hedge_delay", "stall_timeout", "wait_timeout")
NEVER = 600.0
"""Seconds, longer than any wait in the test: a pull that succeeds did not wait for a limit of this length."""


@pytest.fixture(scope="module", params=each_release("2.4.2"))
def lab(request: pytest.FixtureRequest) -> Generator[Lab]:
    with Lab("a", "b", "c", release=release(request.param), access=chosen_access("certificates")) as lab:
        yield lab


@pytest.mark.parametrize("limits", [{}, dict.fromkeys(WAITS, NEVER)], ids=["default limits", "no limits"])
def test_an_image_that_no_peer_has_costs_upstream_the_same_requests_as_without_peili(
    lab: Lab, limits: dict[str, float]
) -> None:
    """`python -m bench misses pull` measures how long it takes."""
    _, b, c = lab.hosts.values()
    lab.start_peili(limits=limits)
    c.containerd.set_mirrors(lab.upstream.name)  # without a mirror
    assert requests_to_upstream(lab, b) == requests_to_upstream(lab, c)
    lab.stop_peili()


def test_a_pull_completes_from_upstream_while_peili_does_not_run(lab: Lab) -> None:
    a, b, _ = lab.hosts.values()
    lab.start_peili("a")
    published = lab.publish("library/not-running", LAYERS)
    a.containerd.pull(published.by_tag)
    b.containerd.pull(published.by_tag)
    assert_has(b, published.image)
    lab.stop_peili()


def test_with_defer_a_tag_fails_while_the_registry_is_down_and_a_digest_does_not(lab: Lab) -> None:
    """README says so. The peer has the image, but the resolver leaves tags to the registry."""
    a, b, _ = lab.hosts.values()
    lab.start_peili("a", "b", resolver={"kind": "defer"})
    published = lab.publish("library/registry-down", LAYERS)
    a.containerd.pull(published.by_tag)
    wait_found(b, published)
    lab.upstream.stop()
    try:
        with pytest.raises(CommandFailed):
            b.containerd.pull(published.by_tag)
        b.containerd.pull(published.by_digest)
        assert_has(b, published.image)
    finally:
        lab.upstream.start()
        lab.stop_peili()


def requests_to_upstream(lab: Lab, host: Host) -> Counter[tuple[str, str, int]]:
    """Let `host` pull a new image, and count the requests to upstream by method, kind of path and status."""
    published = lab.publish("library/nobody", LAYERS)
    before = lab.upstream.log_position()
    host.containerd.pull(published.by_tag)
    assert_has(host, published.image)
    return Counter((each.method, each.path.split("/")[-2], each.status) for each in lab.upstream.requests(before))
