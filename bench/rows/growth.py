"""Requests and misses again, with more and more known peers, and with more and more blobs. Each figure is held against
ours at the smallest number: what does not grow with the cluster or the store stays near 1. bench/plots.py draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from bench.clients import Clients
from bench.measure import MILLISECONDS, PER_SECOND, Place, Row, Unit, take_turns
from bench.mirrors import MEMORY_STORE, NO_PEERS, empty_peers, layout_store, peili, static_router
from bench.rows.misses import miss
from bench.setting import Setting, blob_path, manifest_path
from peili.mirror import Descriptor
from peili.mirror.testing.images import Image

GROUP = "growth"
_PEERS = 8
"""Known peers where it is the blobs that grow."""


@dataclass(frozen=True, slots=True)
class Host:
    """A mirror at one of the numbers: its local door, and what its store has."""

    at: int
    port: int
    images: Sequence[Image]


@dataclass(frozen=True, slots=True)
class Figure:
    """What is measured of each host."""

    what: str
    unit: Unit
    measure: Callable[[Host], float]


def rows(setting: Setting) -> Iterator[Row]:
    """By peers, then by blobs."""
    with Clients() as clients:
        yield from _by_peers(setting, clients)
        yield from _by_blobs(setting, clients)


def _by_peers(setting: Setting, clients: Clients) -> Iterator[Row]:
    """One of the peers has the blobs that are relayed; all others have nothing. Each is a real mirror."""
    numbers = [setting.pick(*each) for each in ((10, 3), (100, 6), (1000, 12))]
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
            own.append(Host(number, stack.enter_context(peili(setting.new("log"), *store, *router)).local, images))
            relays[number] = stack.enter_context(peili(setting.new("log"), *MEMORY_STORE, *router)).local

        def relayed(host: Host) -> float:
            """Only what was found counts: among too many peers the time may be up before the holder is asked."""
            statuses = [200, 404]
            return clients.requests(relays[host.at], "GET", blobs, statuses=statuses, seconds=setting.seconds).rate

        figures = [*_figures(setting, clients), Figure("blobs of 4 KiB relayed", PER_SECOND, relayed)]
        yield from _grown("known peers", setting, own, figures)


def _by_blobs(setting: Setting, clients: Clients) -> Iterator[Row]:
    numbers = [setting.pick(*each) for each in ((100, 20), (5000, 100), (50000, 300))]
    with ExitStack() as stack:
        router = static_router(stack.enter_context(empty_peers(setting.new("log"), _PEERS)))
        hosts: list[Host] = []
        for number in numbers:
            images = setting.many(number)
            started = stack.enter_context(peili(setting.new("log"), *layout_store(images[0].path), *router))
            hosts.append(Host(number, started.local, images))
        yield from _grown("blobs", setting, hosts, _figures(setting, clients))


def _figures(setting: Setting, clients: Clients) -> list[Figure]:
    def heads(host: Host) -> float:
        paths = [*map(manifest_path, host.images)]
        return clients.requests(host.port, "HEAD", paths, seconds=setting.seconds).rate

    def blobs(host: Host) -> float:
        paths = [*map(blob_path, _some(host))]
        return clients.requests(host.port, "GET", paths, seconds=setting.seconds).rate

    def misses(host: Host) -> float:
        return miss(clients, host.port, seconds=setting.seconds).median

    return [
        Figure("manifest HEAD from the store", PER_SECOND, heads),
        Figure("blobs of 4 KiB from the store", PER_SECOND, blobs),
        Figure("a miss", MILLISECONDS, misses),
    ]


def _some(host: Host) -> list[Descriptor]:
    """Up to 1,000 layers, taken evenly from all that it has."""
    layers = [layer for image in host.images for layer in image.layers]
    return layers[:: max(1, len(layers) // 1000)]


def _grown(axis: str, setting: Setting, hosts: Sequence[Host], figures: Sequence[Figure]) -> Iterator[Row]:
    for figure in figures:
        samples = take_turns([partial(figure.measure, host) for host in hosts], rounds=setting.few_rounds)
        for host, taken in zip(hosts, samples, strict=True):
            what = f"{figure.what}, {host.at:,} {axis}"
            against = ("", ()) if host is hosts[0] else (f"ours with {hosts[0].at:,}", samples[0])
            place = Place(axis, host.at, figure.what)
            yield Row(GROUP, what, figure.unit, taken, *against, place=place)
