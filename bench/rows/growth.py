"""Requests and misses again, with more and more known peers, and with more and more blobs. Each figure is held against
ours at the smallest number: what does not grow with the cluster or the store stays near 1. bench/plots.py draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from tests.support.ports import free_ports

from bench import budgets
from bench.clients import Answered, Clients
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
"""Known peers where it is the blobs that grow."""


@dataclass(frozen=True, slots=True)
class Host:
    """A mirror at one of the numbers, and what its store has."""

    at: int
    mirror: Peili
    images: Sequence[Image]


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured once: the figures, in the order of `Figure.columns`, and how busy the client was."""

    values: tuple[float, ...]
    client: float


@dataclass(frozen=True, slots=True)
class Column:
    """One of the figures that are measured at once."""

    what: str
    unit: Unit
    budget: Budget | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """What is measured of each host."""

    columns: Sequence[Column]
    measure: Callable[[Host], Sample]


def rows(setting: Setting) -> Iterator[Row]:
    """By peers, then by blobs."""
    with Clients() as clients:
        yield from _by_peers(setting, clients)
        yield from _by_blobs(setting, clients)


def _by_peers(setting: Setting, clients: Clients) -> Iterator[Row]:
    """One of the peers has the blobs that are relayed; all others have nothing. Each is a real mirror."""
    numbers = setting.pick((10, 100, 1000), (3, 12))
    images = setting.small
    blobs = [blob_path(layer) for image in images for layer in image.layers]
    store = layout_store(images[0].path)
    with ExitStack() as stack:
        others = stack.enter_context(empty_peers(setting.new("log"), numbers[-1] - 1))
        holder = stack.enter_context(peili(setting.new("log"), *store, *NO_PEERS))
        own: list[Host] = []
        relays: dict[int, int] = {}
        for number in numbers:
            router = static_router([holder.url, *others[: number - 1]])
            own.append(Host(number, stack.enter_context(peili(setting.new("log"), *store, *router)), images))
            relays[number] = stack.enter_context(peili(setting.new("log"), *MEMORY_STORE, *router)).local

        def relayed(host: Host) -> Sample:
            """Only what was found counts: among too many peers the time may be up before the holder is asked."""
            statuses = [200, 404]
            return _rate(clients.requests(relays[host.at], "GET", blobs, statuses=statuses, seconds=setting.seconds))

        figures = [
            *_figures(setting, clients),
            *_half_dead(setting, clients, others, stack),
            Figure([Column("blobs of 4 KiB relayed", PER_SECOND)], relayed),
        ]
        yield from _grown("known peers", setting, own, figures)


def _half_dead(setting: Setting, clients: Clients, live: Sequence[str], stack: ExitStack) -> Iterator[Figure]:
    """A miss where half of the peers are dead. Many of these may share a port: to a mirror each URL is a peer."""
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
            answered = miss(clients, started[host.at], seconds=setting.seconds)
            return Sample((answered.median,), answered.client)

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
        yield from _grown("blobs", setting, hosts, _figures(setting, clients, budgets.MISS))


def _figures(setting: Setting, clients: Clients, of_a_miss: Budget | None = None) -> list[Figure]:
    seconds = setting.seconds / 2

    def heads(host: Host) -> Sample:
        paths = [*map(manifest_path, host.images)]
        return _rate(clients.requests(host.mirror.local, "HEAD", paths, seconds=seconds))

    def manifests(host: Host) -> Sample:
        paths = [*map(manifest_path, host.images)]
        return _rate(clients.requests(host.mirror.local, "GET", paths, seconds=seconds))

    def blobs(host: Host) -> Sample:
        paths = [*map(blob_path, _some(host))]
        return _rate(clients.requests(host.mirror.local, "GET", paths, seconds=seconds))

    def misses(host: Host) -> Sample:
        # The peers that answer share these processors, and a cluster's don't: so the mirror's own CPU is told, too.
        before = cpu_seconds([host.mirror.process.pid])
        answered = miss(clients, host.mirror.local, seconds=setting.seconds)
        used = cpu_seconds([host.mirror.process.pid]) - before
        return Sample((answered.median, 1e3 * used / answered.count), answered.client)

    return [
        Figure([Column("manifest HEAD from the store", PER_SECOND)], heads),
        Figure([Column("manifest GET from the store", PER_SECOND)], manifests),
        Figure([Column("blobs of 4 KiB from the store", PER_SECOND)], blobs),
        Figure([Column("a miss", MILLISECONDS, of_a_miss), Column(_CPU_OF_A_MISS, CPU_MILLISECONDS)], misses),
    ]


def _rate(answered: Answered) -> Sample:
    return Sample((answered.rate,), answered.client)


def _some(host: Host) -> list[Descriptor]:
    """Up to 1,000 layers, taken evenly from all that it has."""
    layers = [layer for image in host.images for layer in image.layers]
    return layers[:: max(1, len(layers) // 1000)]


def _grown(axis: str, setting: Setting, hosts: Sequence[Host], figures: Sequence[Figure]) -> Iterator[Row]:
    for figure in figures:
        samples = take_turns([partial(figure.measure, host) for host in hosts], rounds=setting.few_rounds)
        clients = [tuple(each.client for each in taken) for taken in samples]
        for number, column in enumerate(figure.columns):
            values = [tuple(each.values[number] for each in taken) for taken in samples]
            yield from _column(axis, hosts, column, values, clients)


def _column(
    axis: str,
    hosts: Sequence[Host],
    column: Column,
    values: Sequence[tuple[float, ...]],
    clients: Sequence[tuple[float, ...]],
) -> Iterator[Row]:
    """A row for each host, held against the first one; `values` and `clients` are in the order of the hosts."""
    for host, taken, client in zip(hosts, values, clients, strict=True):
        first = host is hosts[0]
        against = ("", ()) if first else (f"ours with {hosts[0].at:,}", values[0])
        busy = Busy(client) if first else Busy(client, clients[0])
        what, place = f"{column.what}, {host.at:,} {axis}", Place(axis, host.at, column.what)
        yield Row(GROUP, what, column.unit, taken, *against, column.budget, place, busy)
