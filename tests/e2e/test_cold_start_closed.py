"""A cold start between hosts whose peer doors are closed: with mutual TLS by a key or by certificates."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from tests.e2e.checks import KIB, MIB, assert_shared
from tests.lab.lab import GENEROUS_LIMITS, Lab
from tests.lab.namespaces import NamespaceNode
from tests.lab.releases import release


@pytest.fixture(params=["key", "certificates"])
def lab(request: pytest.FixtureRequest) -> Generator[Lab]:
    with Lab("a", "b", "c", release=release("installed"), access=request.param) as lab:
        for node in (lab.upstream.node, *(host.node for host in lab.hosts.values())):
            if not isinstance(node, NamespaceNode):
                pytest.skip("the rate of loopback can't be limited, so a layer would arrive at once")
            node.limit_link("80mbit")
        lab.start_peili(limits={**GENEROUS_LIMITS, "claim_timeout": 10})
        yield lab


def test_upstream_sends_one_copy_over_mutual_tls(lab: Lab) -> None:
    assert_shared(lab, [4 * MIB, 100 * KIB], most_copies=1.05)
