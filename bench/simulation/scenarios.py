"""What is simulated: pulls of all hosts at once, and the faults that can happen meanwhile."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from bench.simulation.cluster import Cluster
from bench.simulation.network import Numbers, Rates
from peili.mirror.limits import MIB
from peili.mirror.membership.directory.homes import HomeSet, choose_homes, slot_of

MBIT = 125_000
LINKS = Rates(host=100 * MBIT, upstream=100 * MBIT)
ONE_LAYER = (64 * MIB,)
_OVERHEAD = 1514 / 1448
"""The bytes of an Ethernet frame for each byte of content in it. The laboratory limits frames."""
_MOST = 600.0
"""The longest simulated time in seconds."""


def _nothing(_: Cluster) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Scenario:
    """One simulation.

    Attributes:
        name: What happens.
        hosts: How many hosts there are.
        sizes: The sizes of the layers in bytes.
        rates: The links.
        prepare: Arranges what happens.
        parts: Into how many parts the cluster is divided that know only themselves.
        join_interval: Seconds from the start of one host to the next; 0 is all within 0.1 s.
        overhead: How many bytes the links carry for each byte of content. F/B counts all of them.
        expected: What the design says, for the report.
    """

    name: str
    hosts: int
    sizes: Sequence[int] = ONE_LAYER
    rates: Rates = LINKS
    prepare: Callable[[Cluster], None] = _nothing
    parts: int = 1
    join_interval: float = 0.0
    overhead: float = 1.0
    expected: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulation has shown. Times are multiples of F/B, uploads are multiples of the image.

    Attributes:
        scenario: What was simulated.
        copies: How many copies of the image upstream has sent.
        times: When each surviving host was done, from its own start, sorted.
        failed: How many surviving hosts were not done in the end.
        depths: How many hops each transfer was from its root.
        uploads: What each host has sent, sorted.
        messages: How many messages each host sent to homes.
        busiest: How many messages the busiest home got per second.
        seconds: The real time that the simulation took.
    """

    scenario: Scenario
    copies: float
    times: Numbers
    failed: int
    depths: Numbers
    uploads: Numbers
    messages: float
    busiest: float
    seconds: float


def simulate(scenario: Scenario, seed: int = 1) -> Outcome:
    """Run a simulation."""
    began = time.perf_counter()
    cluster = Cluster(scenario.hosts, scenario.sizes, scenario.rates, parts=scenario.parts, seed=seed)
    draw = random.Random(seed)
    starts = [each * scenario.join_interval or draw.uniform(0, 0.1) for each in range(scenario.hosts)]
    for host, start in zip(cluster.hosts, starts, strict=True):
        cluster.at(start, partial(cluster.start, host))
    scenario.prepare(cluster)
    cluster.run(_MOST)
    image, network = float(sum(scenario.sizes)), cluster.network
    alive = [host for host in cluster.hosts if host.is_alive]
    ends = [each.finished - starts[each.number] for each in alive if each.finished is not None]
    return Outcome(
        scenario,
        copies=float(network.sent[network.upstream]) / image,
        times=np.sort(np.array(ends)) / (image / (scenario.rates.host * scenario.overhead)),
        failed=sum(each.finished is None for each in alive),
        depths=np.array([float(each.depth()) for each in cluster.transfers]),
        uploads=np.sort(network.sent[: network.upstream]) / image,
        messages=sum(view.messages.total() for view in cluster.views) / scenario.hosts,
        busiest=max(max(view.at_home.values(), default=0) for view in cluster.views) / cluster.time,
        seconds=time.perf_counter() - began,
    )


def first_root(cluster: Cluster) -> int:
    """Return the host that gets the first layer from upstream now; the first host if there is none."""
    rows = np.flatnonzero(cluster.network.source[:: cluster.network.layers] == cluster.network.upstream)
    return int(rows[0]) if rows.size else 0


def normal(hosts: int) -> list[Scenario]:
    """Return the scenarios without faults."""
    small = 40 if hosts <= 1000 else 4  # with more, the simulation takes too long
    return [
        Scenario("1 layer of 64 MiB", hosts),
        Scenario("4 layers of 16 MiB", hosts, (16 * MIB,) * 4),
        Scenario(f"{small} layers of 1 MiB", hosts, (MIB,) * small),
    ]


def laboratory(hop: float) -> list[Scenario]:
    """Return scenes that were measured with real hosts, too; see bench/rows/coldstart.py.

    Args:
        hop: The delay of a hop in seconds.
    """
    images = {"1 x 64 MiB": ONE_LAYER, "4 x 16 MiB": (16 * MIB,) * 4, "40 x 1 MiB": (MIB,) * 40}
    scenes = [(8, 40, name) for name in images] + [(16, 20, "1 x 64 MiB"), (16, 20, "4 x 16 MiB")]
    return [
        Scenario(f"{rate} Mbit/s, {name}", hosts, images[name], _limited(rate, hop), overhead=_OVERHEAD)
        for hosts, rate, name in scenes
    ]


def _limited(rate: int, hop: float) -> Rates:
    content = rate * MBIT / _OVERHEAD
    return Rates(host=content, upstream=content, hop=hop)


def faults(hosts: int) -> list[Scenario]:
    """Return the scenarios with faults."""
    slow = Rates(host=400 * MBIT, upstream=20 * MBIT)
    big = (256 * MIB,)
    return [
        Scenario("hosts join one by one", hosts, join_interval=0.02, expected="1 copy"),
        Scenario("a quarter is killed midway", hosts, prepare=_kill_quarter, expected="up to 1 copy more"),
        Scenario("the first feeder is killed", hosts, prepare=_kill_root(False), expected="the rest again"),
        Scenario("the first feeder is frozen", hosts, prepare=_kill_root(True), expected="the rest again"),
        Scenario("a slow way from the root to upstream", hosts, big, prepare=_slow_path, expected="up to 3 copies"),
        Scenario("the same with 4 layers", hosts, (16 * MIB,) * 4, prepare=_slow_path, expected="up to 1 copy more"),
        Scenario("one slow uplink", hosts, prepare=_slow_uplink, expected="1 copy"),
        Scenario("upstream is slow", hosts, rates=slow, expected="1 copy, as fast as upstream"),
        Scenario("upstream is frozen for 10 s", hosts, prepare=_freeze_upstream, expected="1 copy, 10 s more"),
        Scenario("upstream is dead from the start", hosts, prepare=_kill_upstream, expected="all are told soon"),
        Scenario("upstream denies one host", hosts, prepare=_deny_first, expected="1 copy, 1 s more"),
        Scenario("the home of the layer is killed", hosts, prepare=_kill_home, expected="up to 1 copy more"),
        Scenario("two halves know only themselves", hosts, parts=2, expected="2 copies"),
        Scenario("a feeder changes one byte", hosts, prepare=_corrupt, expected="those behind it begin again"),
    ]


def _midway(cluster: Cluster) -> float:
    return float(cluster.network.size[: cluster.network.layers].sum() / cluster.network.up[0]) / 2


def _kill_quarter(cluster: Cluster) -> None:
    def act() -> None:
        for host in cluster.hosts[1::4]:
            cluster.kill(host)

    cluster.at(_midway(cluster), act)


def _kill_root(is_frozen: bool) -> Callable[[Cluster], None]:
    def prepare(cluster: Cluster) -> None:
        cluster.at(_midway(cluster), lambda: cluster.kill(cluster.hosts[first_root(cluster)], is_frozen=is_frozen))

    return prepare


def _slow_path(cluster: Cluster) -> None:
    def act() -> None:
        cluster.network.path[first_root(cluster)] = cluster.network.up[cluster.network.upstream] / 10

    cluster.at(0.2, act)


def _slow_uplink(cluster: Cluster) -> None:
    def act() -> None:
        """Slow down the first child of the root."""
        children = np.flatnonzero(cluster.network.source == first_root(cluster))
        cluster.network.up[int(children[0]) if children.size else 1] /= 10

    cluster.at(0.2, act)


def _freeze_upstream(cluster: Cluster) -> None:
    rate = float(cluster.network.up[cluster.network.upstream])

    def set_rate(value: float) -> None:
        cluster.network.up[cluster.network.upstream] = value

    cluster.at(_midway(cluster), lambda: set_rate(0))
    cluster.at(_midway(cluster) + 10, lambda: set_rate(rate))


def _kill_upstream(cluster: Cluster) -> None:
    cluster.upstream_works = False


def _deny_first(cluster: Cluster) -> None:
    """Deny the host that asks first: it starts a little earlier."""
    first = cluster.hosts[0]
    first.is_denied = True
    cluster.at(0, lambda: cluster.start(first))


def _kill_home(cluster: Cluster) -> None:
    names = [each.name for each in cluster.hosts]
    home = HomeSet(choose_homes(names)).homes_of(slot_of(cluster.keys[0]))[0]
    cluster.at(_midway(cluster), lambda: cluster.kill(cluster.hosts[names.index(home)]))


def _corrupt(cluster: Cluster) -> None:
    def act() -> None:
        children = np.flatnonzero(cluster.network.source == first_root(cluster))
        cluster.network.corrupt[int(children[0]) if children.size else 1] = True

    cluster.at(_midway(cluster), act)
