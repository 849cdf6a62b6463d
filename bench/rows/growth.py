"""Measures requests and misses with growing numbers of known peers and of blobs.

The reference of each figure is peili at the smallest number. The ratio stays near 1 if a figure does not depend on the
size of the cluster or the store. bench/plots.py draws these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from tests.lab.processes import wait_for
from tests.support.ports import free_ports

from bench import budgets
from bench.clients import Clients, RequestResult
from bench.measure import (
    CPU_MILLISECONDS,
    MILLISECONDS,
    PER_SECOND,
    TIMES,
    Budget,
    Busy,
    Place,
    RatioOf,
    Row,
    Unit,
    take_turns,
)
from bench.members import Own, members
from bench.mirrors import MEMORY_STORE, Peili, empty_peers, layout_store, peers_known, peili, static_router
from bench.processes import silent_port
from bench.rows.misses import miss
from bench.setting import Setting, blob_path, manifest_path
from bench.usage import cpu_seconds
from peili.mirror import Descriptor
from peili.mirror.testing.images import Image

GROUP = "growth"
_CPU_OF_A_MISS = "CPU of ours for a miss"
_DEAD = ("refusing", "silent")
_FAILED = 600.0
"""Seconds in which all dead peers have failed, on a machine that is very busy with other work."""
_PATIENT = ("limits.lookup_timeout=10",)
"""The empty mirrors share a process. If that has to wait for a second, all homes would count as dead at once."""
_PEERS = 8
"""The number of known peers while the number of blobs grows."""


@dataclass(frozen=True, slots=True)
class Host:
    """A mirror for one of the numbers, with the images in its store."""

    at: int
    mirror: Peili
    images: Sequence[Image]


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample: the figures in the order of `Figure.columns`, and how busy the client was."""

    values: tuple[float, ...]
    client: float


@dataclass(frozen=True, slots=True)
class Column:
    """One of several figures that are measured together."""

    what: str
    unit: Unit
    budget: Budget | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """Figures that are measured together on each host."""

    columns: Sequence[Column]
    measure: Callable[[Host], Sample]


def rows(setting: Setting) -> Iterator[Row]:
    """Yield rows by the number of peers, then by the number of blobs."""
    with Clients() as clients:
        yield from _by_peers(setting, clients)
        yield from _by_blobs(setting, clients)


def _by_peers(setting: Setting, clients: Clients) -> Iterator[Row]:
    """Yield rows by the number of peers, which are real mirrors. One has the relayed blobs; the others are empty."""
    numbers = setting.pick((10, 100, 1000), (6,))
    images = setting.small
    blobs = [blob_path(layer) for image in images for layer in image.layers]
    with ExitStack() as stack:
        clusters = [stack.enter_context(_cluster(setting, clients, number)) for number in numbers]
        hosts = [each.host for each in clusters]
        by_number = {each.host.at: each for each in clusters}

        def relayed(host: Host) -> Sample:
            """Count only found blobs. Without the directory, a lookup among many peers may end without the holder."""
            statuses = [200, 404]
            relay = by_number[host.at].relay
            return _rate(clients.requests(relay.local, "GET", blobs, statuses=statuses, seconds=setting.seconds))

        def half_dead(how: str) -> Callable[[Host], Sample]:
            def misses(host: Host) -> Sample:
                alive = miss(clients, host.mirror.local, seconds=setting.seconds)
                result = miss(clients, by_number[host.at].half_dead[how].local, seconds=setting.seconds)
                return Sample((result.median, result.p99, result.median / alive.median), result.client)

            return misses

        figures = [
            *_figures(setting, clients, budgets.MISS_OF_MANY),
            *(Figure(_columns_of_dead(how), half_dead(how)) for how in _DEAD),
            Figure([Column("blobs of 4 KiB relayed", PER_SECOND, budgets.RELAY_OF_MANY)], relayed),
        ]
        yield from _growth_rows("known peers", setting, hosts, figures)


def _columns_of_dead(how: str) -> Sequence[Column]:
    """Return the columns of misses while half of the peers are dead. Each of these has failed once."""
    what, is_silent = f"a miss, half of them dead: {how}", how == "silent"
    return (
        Column(what, MILLISECONDS),
        Column(f"{what}: p99", MILLISECONDS, budgets.MISS_HALF_SILENT_P99 if is_silent else None),
        Column(f"{what}: compared with none dead", TIMES, budgets.MISS_HALF_SILENT if is_silent else None),
    )


@dataclass(frozen=True, slots=True)
class Cluster:
    """The measured hosts.

    Attributes:
        host: The host whose misses and own content are measured. It has the images.
        relay: A host without content.
        half_dead: Hosts for which half of the members are dead, by how they are.
    """

    host: Host
    relay: Peili
    half_dead: Mapping[str, Peili]


@contextmanager
def _cluster(setting: Setting, clients: Clients, number: int) -> Generator[Cluster]:
    """Run hosts that know `number` peers: a holder of the images, one that relays them, and those with dead peers."""
    images = setting.small
    store = layout_store(images[0].path)
    with ExitStack() as stack:
        holder, host, relay = (Own([*each, *_PATIENT]) for each in (store, store, MEMORY_STORE))
        living = stack.enter_context(members(setting, [holder, host, relay], number - 2))
        living.wait_until_settled()
        _, measured, relaying = living.hosts
        half_dead = stack.enter_context(_half_dead(setting, clients, number))
        yield Cluster(Host(number, measured, images), relaying, half_dead)


@contextmanager
def _half_dead(setting: Setting, clients: Clients, number: int) -> Generator[Mapping[str, Peili]]:
    """Run hosts with `number` peers, of which half are dead. Each of these has failed when the context is entered."""
    with ExitStack() as stack:
        ports = {"refusing": free_ports(1)[0], "silent": stack.enter_context(silent_port())}
        # The dead peers of a host share a port, because for a mirror each URL is a peer.
        dead = [
            [{"id": f"dead-{n}", "url": f"http://127.0.0.1:{ports[how]}/{n}"} for n in range(number // 2)]
            for how in _DEAD
        ]
        alive = number - number // 2
        cluster = stack.enter_context(members(setting, [Own(MEMORY_STORE, each) for each in dead], alive - 1))
        for each in cluster.hosts:
            wait_for(partial(_knows_the_dead, clients, each, alive), "dead peers fail", timeout=_FAILED)
        cluster.wait_until_settled()
        yield dict(zip(_DEAD, cluster.hosts, strict=True))


def _knows_the_dead(clients: Clients, host: Peili, alive: int) -> bool:
    """Return whether the host knows which of its peers are dead. A miss asks some of the others."""
    miss(clients, host.local, count=1)
    return peers_known(host.local) <= alive


def _by_blobs(setting: Setting, clients: Clients) -> Iterator[Row]:
    numbers = setting.pick((100, 5000, 50000), (20, 300))
    with ExitStack() as stack:
        router = static_router(stack.enter_context(empty_peers(setting.new("log"), _PEERS)))
        hosts: list[Host] = []
        for number in numbers:
            images = setting.many(number)
            started = stack.enter_context(peili(setting.new("log"), *layout_store(images[0].path), *router))
            hosts.append(Host(number, started, images))
        yield from _growth_rows("blobs", setting, hosts, _figures(setting, clients, budgets.MISS))


def _figures(setting: Setting, clients: Clients, miss_budget: Budget | None = None) -> list[Figure]:
    seconds = setting.seconds / 2

    def heads(host: Host) -> Sample:
        paths = [*map(manifest_path, host.images)]
        return _rate(clients.requests(host.mirror.local, "HEAD", paths, seconds=seconds))

    def manifests(host: Host) -> Sample:
        paths = [*map(manifest_path, host.images)]
        return _rate(clients.requests(host.mirror.local, "GET", paths, seconds=seconds))

    def blobs(host: Host) -> Sample:
        paths = [*map(blob_path, _sample_layers(host))]
        return _rate(clients.requests(host.mirror.local, "GET", paths, seconds=seconds))

    def misses(host: Host) -> Sample:
        # Unlike in a cluster, the peers share the processors of the mirror. So its CPU time is a figure, too.
        before = cpu_seconds([host.mirror.process.pid])
        result = miss(clients, host.mirror.local, seconds=setting.seconds)
        used = cpu_seconds([host.mirror.process.pid]) - before
        return Sample((result.median, 1e3 * used / result.count), result.client)

    return [
        Figure([Column("manifest HEAD from the store", PER_SECOND)], heads),
        Figure([Column("manifest GET from the store", PER_SECOND)], manifests),
        Figure([Column("blobs of 4 KiB from the store", PER_SECOND)], blobs),
        Figure([Column("a miss", MILLISECONDS, miss_budget), Column(_CPU_OF_A_MISS, CPU_MILLISECONDS)], misses),
    ]


def _rate(result: RequestResult) -> Sample:
    return Sample((result.rate,), result.client)


def _sample_layers(host: Host) -> list[Descriptor]:
    """Return up to about 1,000 layers, evenly distributed over all layers of the host."""
    layers = [layer for image in host.images for layer in image.layers]
    return layers[:: max(1, len(layers) // 1000)]


def _growth_rows(axis: str, setting: Setting, hosts: Sequence[Host], figures: Sequence[Figure]) -> Iterator[Row]:
    for figure in figures:
        samples = take_turns([partial(figure.measure, host) for host in hosts], rounds=setting.few_rounds)
        clients = [tuple(each.client for each in taken) for taken in samples]
        for number, column in enumerate(figure.columns):
            values = [tuple(each.values[number] for each in taken) for taken in samples]
            yield from _column_rows(axis, hosts, column, values, clients)


def _column_rows(
    axis: str,
    hosts: Sequence[Host],
    column: Column,
    values: Sequence[tuple[float, ...]],
    clients: Sequence[tuple[float, ...]],
) -> Iterator[Row]:
    """Yield a row for each host, with the first one as reference. `values` and `clients` have the order of `hosts`."""
    for host, taken, client in zip(hosts, values, clients, strict=True):
        first = host is hosts[0]
        against = ("", ()) if first else (f"ours with {hosts[0].at:,}", values[0])
        busy = Busy(client) if first else Busy(client, clients[0])
        what, place = f"{column.what}, {host.at:,} {axis}", Place(axis, host.at, column.what)
        budget = None if first and isinstance(column.budget, RatioOf) else column.budget
        yield Row(GROUP, what, column.unit, taken, *against, budget, place, busy)
