"""Measures requests and misses with growing numbers of known peers and of blobs.

The reference of each figure is peili at the smallest number. The ratio stays near 1 if a figure does not depend on the
size of the cluster or the store. bench/plots.py draws these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from tests.support.ports import free_ports

from bench import budgets
from bench.clients import Clients, RequestResult
from bench.measure import CPU_MILLISECONDS, MILLISECONDS, PER_SECOND, Budget, Busy, Place, Row, Unit, take_turns
from bench.mirrors import MEMORY_STORE, NO_PEERS, Peili, empty_peers, layout_store, peili, static_router
from bench.processes import silent_port
from bench.rows.misses import miss
from bench.setting import Setting, blob_path, manifest_path
from bench.usage import cpu_seconds
from peili.mirror import Descriptor
from peili.mirror.testing.images import Image

GROUP = "growth"
_CPU_OF_A_MISS = "CPU of ours for a miss"
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
    store = layout_store(images[0].path)
    with ExitStack() as stack:
        others = stack.enter_context(empty_peers(setting.new("log"), numbers[-1] - 1))
        holder = stack.enter_context(peili(setting.new("log"), *store, *NO_PEERS))
        hosts: list[Host] = []
        relays: dict[int, int] = {}
        for number in numbers:
            router = static_router([holder.url, *others[: number - 1]])
            hosts.append(Host(number, stack.enter_context(peili(setting.new("log"), *store, *router)), images))
            relays[number] = stack.enter_context(peili(setting.new("log"), *MEMORY_STORE, *router)).local

        def relayed(host: Host) -> Sample:
            """Count only found blobs. With many peers, the lookup can end before it asks the holder."""
            statuses = [200, 404]
            return _rate(clients.requests(relays[host.at], "GET", blobs, statuses=statuses, seconds=setting.seconds))

        figures = [
            *_figures(setting, clients),
            *_half_dead(setting, clients, others, stack),
            Figure([Column("blobs of 4 KiB relayed", PER_SECOND)], relayed),
        ]
        yield from _growth_rows("known peers", setting, hosts, figures)


def _half_dead(setting: Setting, clients: Clients, live: Sequence[str], stack: ExitStack) -> Iterator[Figure]:
    """Measure a miss with half of the peers dead. They share a port: for a mirror, each URL is a peer."""
    [refusing] = free_ports(1)
    for how, port in (("refusing", refusing), ("silent", stack.enter_context(silent_port()))):
        started: dict[int, int] = {}

        def misses(host: Host, port: int = port, started: dict[int, int] = started) -> Sample:
            if host.at not in started:
                half = host.at // 2
                router = static_router(
                    [*live[: host.at - half], *(f"http://127.0.0.1:{port}/{n}" for n in range(half))]
                )
                started[host.at] = stack.enter_context(peili(setting.new("log"), *MEMORY_STORE, *router)).local
            result = miss(clients, started[host.at], seconds=setting.seconds)
            return Sample((result.median,), result.client)

        yield Figure([Column(f"a miss, half of them dead: {how}", MILLISECONDS)], misses)


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
        yield Row(GROUP, what, column.unit, taken, *against, column.budget, place, busy)
