"""Measures many small requests, against docker-registry.

Manifests and small blobs come from the store. Small blobs also come through a second host; there the reference is
docker-registry as a pull-through cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from bench import budgets
from bench.clients import Clients, RequestResult, busy
from bench.measure import BLOBS, MILLISECONDS, PER_SECOND, Budget, Row, take_turns
from bench.mirrors import MEMORY_STORE, NO_PEERS, layout_store, peili, static_router
from bench.references import registry
from bench.setting import (
    REPOSITORY,
    Setting,
    blob_path,
    manifest_path,
    registry_blob_path,
    registry_manifest_path,
)

GROUP = "requests"
_AGAINST = "docker-registry"
_CACHE = "docker-registry, pull-through"


@dataclass(frozen=True, slots=True)
class Side:
    """The requests to one side."""

    port: int
    method: str
    paths: Sequence[str]


@dataclass(frozen=True, slots=True)
class Task:
    """The requests to both sides."""

    what: str
    ours: Side
    theirs: Side
    budget: Budget | None


def rows(setting: Setting) -> Iterator[Row]:
    """Yield rows of HEAD and GET of manifests and of small blobs from the store, then of relayed small blobs."""
    with Clients() as clients:
        yield from _from_the_store(setting, clients)
        yield from _relayed(setting, clients)


def _from_the_store(setting: Setting, clients: Clients) -> Iterator[Row]:
    images = setting.small
    blobs = [layer for image in images for layer in image.layers]
    manifests = [*map(manifest_path, images)], [*map(registry_manifest_path, images)]
    content = [*map(blob_path, blobs)], [*map(registry_blob_path, blobs)]
    named = [(image, REPOSITORY) for image in images]
    with ExitStack() as stack:
        ours = stack.enter_context(peili(setting.new("log"), *layout_store(images[0].path), *NO_PEERS)).local
        theirs, _ = stack.enter_context(registry(setting.new("registry"), *named))
        for what, method, paths, budget in (
            ("manifest HEAD from the store", "HEAD", manifests, budgets.MANIFEST_HEAD),
            ("manifest GET from the store", "GET", manifests, None),
            (f"{len(blobs):,} blobs of 4 KiB from the store", "GET", content, None),
        ):
            task = Task(what, Side(ours, method, paths[0]), Side(theirs, method, paths[1]), budget)
            yield from _rates_and_times(setting, clients, task)


def _rates_and_times(setting: Setting, clients: Clients, task: Task) -> Iterator[Row]:
    """Measure the requests per second on 8 connections, and the time of a request on a single connection."""
    sides = (task.ours, task.theirs)
    rates = [partial(_request, clients, side, setting.seconds, 8) for side in sides]
    mine, others = take_turns(rates, rounds=setting.rounds)
    yield Row(
        GROUP, task.what, PER_SECOND, _rates(mine), _AGAINST, _rates(others), task.budget, client=busy(mine, others)
    )
    alone = [partial(_request, clients, side, setting.seconds / 2, 1) for side in sides]
    mine, others = take_turns(alone, rounds=setting.rounds)
    yield from _times(task.what, mine, others)


def _request(clients: Clients, side: Side, seconds: float, connections: int) -> RequestResult:
    return clients.requests(side.port, side.method, side.paths, seconds=seconds, connections=connections)


def _rates(answers: Sequence[RequestResult]) -> tuple[float, ...]:
    return tuple(each.rate for each in answers)


def _times(what: str, ours: Sequence[RequestResult], theirs: Sequence[RequestResult]) -> Iterator[Row]:
    client = busy(ours, theirs)
    medians = tuple(each.median for each in ours), _AGAINST, tuple(each.median for each in theirs)
    yield Row(GROUP, f"{what}: median time", MILLISECONDS, *medians, client=client)
    p99 = tuple(each.p99 for each in ours), _AGAINST, tuple(each.p99 for each in theirs)
    yield Row(GROUP, f"{what}: p99 time", MILLISECONDS, *p99, client=client)


def _relayed(setting: Setting, clients: Clients) -> Iterator[Row]:
    """Request each blob once, from a relay or a cache that was just started, and then each once more.

    The cache answers the second time from its own disk. The relay stores nothing and asks its peer again.
    """
    images = setting.small
    blobs = [layer for image in images for layer in image.layers]
    named = [(image, REPOSITORY) for image in images]
    with ExitStack() as stack:
        holder = stack.enter_context(peili(setting.new("log"), *layout_store(images[0].path), *NO_PEERS))
        upstream, _ = stack.enter_context(registry(setting.new("registry"), *named))

        def ours() -> tuple[RequestResult, RequestResult]:
            with peili(setting.new("log"), *MEMORY_STORE, *static_router([holder.url])) as relay:
                return _request_twice(clients, Side(relay.local, "GET", [*map(blob_path, blobs)]))

        def theirs() -> tuple[RequestResult, RequestResult]:
            with registry(setting.new("cache"), upstream=upstream) as (cache, _):
                return _request_twice(clients, Side(cache, "GET", [*map(registry_blob_path, blobs)]))

        mine, others = take_turns([ours, theirs], rounds=setting.few_rounds, warm_up=False)
    what = f"{len(blobs):,} blobs of 4 KiB through a second host"
    for turn, when in enumerate(("the first time", "once more")):
        first, second = [each[turn] for each in mine], [each[turn] for each in others]
        rates = _rates(first), _CACHE, _rates(second)
        yield Row(GROUP, f"{what}, {when}", PER_SECOND, *rates, client=busy(first, second))
    missed = [tuple(2 * len(blobs) - sum(part.count for part in both) for both in side) for side in (mine, others)]
    yield Row(GROUP, f"{what}: not found", BLOBS, missed[0], _CACHE, missed[1])


def _request_twice(clients: Clients, side: Side) -> tuple[RequestResult, RequestResult]:
    """Count only found blobs. On a busy machine, the lookup can end before the peer has answered."""
    statuses = [200, 404]
    first = clients.requests(side.port, side.method, side.paths, statuses=statuses)
    return first, clients.requests(side.port, side.method, side.paths, statuses=statuses)
