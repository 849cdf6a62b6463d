"""Measures requests and misses with growing numbers of known peers and of blobs.

The reference of each figure is peili at the smallest number. The ratio stays near 1 if a figure does not depend on the
size of the cluster or the store. bench/plots.py draws these rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

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
from bench.mirrors import MEMORY_STORE, QUIET, Peili, cluster, empty_peers, layout_store, peili, static_router
from bench.processes import silent_port
from bench.rows.misses import miss
from bench.setting import Setting, blob_path, manifest_path
from bench.usage import cpu_seconds
from peili.mirror import Descriptor
from peili.mirror.testing.images import Image

GROUP = "growth"
_CPU_OF_A_MISS = "CPU of ours for a miss"
_DEAD = ("refusing", "silent")
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
    numbers = setting.pick((10, 100, 1000), (3, 12))
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
    """The measured members of a cluster.

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
    """Run a cluster in which a host has `number` peers. One of these, the holder, has the images; the rest is empty."""
    images = setting.small
    store = layout_store(images[0].path)
    ports = free_ports(3 + len(_DEAD))
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    [refusing] = free_ports(1)
    with ExitStack() as stack:

        def run(port: int, *settings: str) -> Peili:
            return stack.enter_context(peili(setting.new("log"), *settings, *QUIET, peer=port))

        empty = stack.enter_context(cluster(setting.new("log"), number - 1, urls))
        router = static_router([urls[0], *empty])
        run(ports[0], *store, *static_router([*urls, *empty]))  # the holder
        host, relay = run(ports[1], *store, *router), run(ports[2], *MEMORY_STORE, *router)
        half = stack.enter_context(cluster(setting.new("log"), number - number // 2, urls))
        half_dead: dict[str, Peili] = {}
        for how, own in zip(_DEAD, ports[3:], strict=True):
            port = refusing if how == "refusing" else stack.enter_context(silent_port())
            # They share a port, because for a mirror each URL is a peer.
            dead = [{"id": f"dead-{n}", "url": f"http://127.0.0.1:{port}/{n}"} for n in range(number // 2)]
            half_dead[how] = run(own, *MEMORY_STORE, *static_router([*half, *dead]))
        time.sleep(setting.pick(20, 1))  # until the members know each other
        for each in half_dead.values():  # until each dead member has failed once; a lookup asks up to 32 of them
            miss(clients, each.local, count=1 + number // 32)
        yield Cluster(Host(number, host, images), relay, half_dead)


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
