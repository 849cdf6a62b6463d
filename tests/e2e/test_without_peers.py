"""Never make a pull worse: nobody has the image, or peili does not run."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator

import pytest
from tests.e2e.checks import MIB, assert_has
from tests.lab.lab import Host, Lab

LAYERS = [4 * MIB] * 3
ROUNDS = 3
NOISE = 2.0
"""Seconds. Peers asked in vain cost milliseconds; waiting for one costs `lookup_timeout` at the manifest, at the config
and at the layers, one after the other. (ctr itself looks only each 0.1 s whether it is done.)
"""


@pytest.fixture(scope="module")
def lab() -> Generator[Lab]:
    with Lab("a", "b", "c") as lab:
        yield lab


def test_what_nobody_has_comes_from_upstream_as_fast_as_without_peili(lab: Lab) -> None:
    _, b, c = lab.hosts.values()
    lab.start_peili(limits={})  # as they are by default
    c.containerd.mirror(lab.upstream.name)  # none
    times = [(timed_pull(lab, b), timed_pull(lab, c)) for _ in range(ROUNDS)]
    lab.stop_peili()
    with_peili, without = (min(column) for column in zip(*times, strict=True))
    sys.stdout.write(f"a pull that nobody can help: {with_peili:.2f} s with peili, {without:.2f} s without\n")
    assert with_peili < without + NOISE


def test_a_pull_completes_from_upstream_while_peili_does_not_run(lab: Lab) -> None:
    a, b, _ = lab.hosts.values()
    lab.start_peili("a")
    published = lab.publish("library/not-running", LAYERS)
    a.containerd.pull(published.by_tag)
    b.containerd.pull(published.by_tag)
    assert_has(b, published.image)


def timed_pull(lab: Lab, host: Host) -> float:
    """The seconds that `host` needs for an image that it alone asks for."""
    published = lab.publish("library/nobody", LAYERS)
    start = time.monotonic()
    host.containerd.pull(published.by_tag)
    took = time.monotonic() - start
    assert_has(host, published.image)
    return took
