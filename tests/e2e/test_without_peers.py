"""Never make a pull worse: nobody has the image, or peili does not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator

import pytest
from tests.e2e.checks import MIB, assert_has
from tests.lab.lab import Host, Lab
from tests.lab.releases import each_release, release

LAYERS = [4 * MIB] * 3
WAITS = ("lookup_timeout", "connect_timeout", "first_byte_timeout", "hedge_delay", "stall_timeout", "wait_timeout")
NEVER = 600.0
"""Seconds of a bound that no pull here would live to see: a pull that succeeds did not wait for it."""


@pytest.fixture(scope="module", params=each_release("2.4.2"))
def lab(request: pytest.FixtureRequest) -> Generator[Lab]:
    with Lab("a", "b", "c", release=release(request.param)) as lab:
        yield lab


@pytest.mark.parametrize("limits", [{}, dict.fromkeys(WAITS, NEVER)], ids=["by default", "without an end"])
def test_what_nobody_has_comes_from_upstream_by_the_same_requests_as_without_peili(
    lab: Lab, limits: dict[str, float]
) -> None:
    """How long it takes is measured by `python -m bench misses pull`."""
    _, b, c = lab.hosts.values()
    lab.start_peili(limits=limits)
    c.containerd.set_mirrors(lab.upstream.name)  # none
    assert asked_upstream(lab, b) == asked_upstream(lab, c)
    lab.stop_peili()


def test_a_pull_completes_from_upstream_while_peili_does_not_run(lab: Lab) -> None:
    a, b, _ = lab.hosts.values()
    lab.start_peili("a")
    published = lab.publish("library/not-running", LAYERS)
    a.containerd.pull(published.by_tag)
    b.containerd.pull(published.by_tag)
    assert_has(b, published.image)


def asked_upstream(lab: Lab, host: Host) -> Counter[tuple[str, str, int]]:
    """What upstream is asked when `host` pulls an image that it alone asks for: methods, kinds of path, statuses."""
    published = lab.publish("library/nobody", LAYERS)
    before = lab.upstream.log_position()
    host.containerd.pull(published.by_tag)
    assert_has(host, published.image)
    lab.upstream.log_position()
    return Counter((each.method, each.path.split("/")[-2], each.status) for each in lab.upstream.requests(before))
