"""How many hosts one host feeds."""

from __future__ import annotations

import pytest

from peili.mirror.limits import MIB
from peili.mirror.membership.directory.fan_out import MAX_DEPTH, Links, choose_shape, depth_of

MBIT = 125_000
SLOW, FAST = Links(40 * MBIT, 0.02), Links(1000 * MBIT, 0.02)


@pytest.mark.parametrize(
    ("size", "hosts", "links", "k"),
    [
        pytest.param(64 * MIB, 8, SLOW, 1, id="large: each uplink is used once"),
        pytest.param(MIB, 8, SLOW, 1, id="small, but the links are slow"),
        pytest.param(1000, 8, FAST, 3, id="tiny: only hops count"),
        pytest.param(MIB, 100, FAST, 3, id="small, many hosts"),
        pytest.param(1024 * MIB, 50, FAST, 1, id="large, many hosts"),
        pytest.param(16 * MIB, 60, Links(), 1, id="no rate is known yet: layers share an uplink"),
        pytest.param(1024 * MIB, 1000, FAST, 2, id="a chain would be too long"),
        pytest.param(64 * MIB, 50, Links(400 * MBIT, 0.02, 20 * MBIT), 4, id="upstream is the limit"),
        pytest.param(64 * MIB, 50, Links(40 * MBIT, 0.02, 40 * MBIT), 1, id="upstream is as fast as the uplinks"),
    ],
)
def test_the_number_that_lets_the_last_host_finish_first(size: int, hosts: int, links: Links, k: int) -> None:
    assert choose_shape(size, hosts, 1, links, 4).children == k


def test_several_sources_share_the_hosts() -> None:
    one, many = (choose_shape(1024 * MIB, 1000, sources, FAST, 4).children for sources in (1, 20))
    assert one > many == 1


@pytest.mark.parametrize(("hosts", "branches_late"), [(60, False), (100, True), (1000, False)])
def test_there_may_be_too_many_hosts_for_a_chain(hosts: int, branches_late: bool) -> None:
    shape = choose_shape(64 * MIB, hosts, 1, Links(100 * MBIT, 0.02), 4)
    assert shape.branches_late == branches_late
    assert shape.children == 1 + (hosts > MAX_DEPTH)


@pytest.mark.parametrize(("k", "hosts", "depth"), [(1, 7, 7), (2, 2, 1), (2, 6, 2), (2, 7, 3), (4, 84, 3), (3, 0, 0)])
def test_the_depth_of_a_tree(k: int, hosts: int, depth: int) -> None:
    assert depth_of(k, hosts) == depth
