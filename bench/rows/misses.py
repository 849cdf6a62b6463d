"""Measures a miss: how long peili takes to answer 404 for a key that nobody has, so that the runtime goes upstream.

The reference is the time that docker-registry on loopback takes to answer 404.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial

from tests.support.ports import free_ports

from bench import budgets
from bench.clients import Clients, RequestResult, busy
from bench.measure import MILLISECONDS, Budget, Row, take_turns
from bench.mirrors import MEMORY_STORE, NO_PEERS, Peili, peili, static_router
from bench.processes import silent_port
from bench.references import registry
from bench.setting import REGISTRY, REPOSITORY, Setting

GROUP = "misses"
_AGAINST = "docker-registry's own 404"
_ENOUGH = 5000
"""The number of blobs. It is more than there is time for, because a repeated miss is answered from memory."""


@dataclass(frozen=True, slots=True)
class Case:
    """The URLs of the peers, and the budgets of a miss among them."""

    what: str
    peers: Sequence[str]
    median: Budget
    p99: Budget | None = None


def rows(setting: Setting) -> Iterator[Row]:
    """Yield rows with eight live peers, with half of them refusing connections, and with half of them silent."""
    with ExitStack() as stack:
        clients = stack.enter_context(Clients())
        count = setting.pick(8, 4)
        live = [stack.enter_context(_peer(setting)).url for _ in range(count)]
        half = live[: count // 2]
        refusing = [_url(port) for port in free_ports(count // 2)]
        silent = [_url(stack.enter_context(silent_port())) for _ in range(count // 2)]
        theirs, _ = stack.enter_context(registry(setting.new("registry")))
        for case in (
            Case(f"a miss, {count} live peers", live, budgets.MISS, budgets.MISS_P99),
            Case(f"a miss, {len(half)} of {count} peers dead: refusing", [*half, *refusing], budgets.MISS_HALF_DEAD),
            Case(f"a miss, {len(half)} of {count} peers dead: silent", [*half, *silent], budgets.MISS_HALF_DEAD),
        ):
            yield from _misses(setting, clients, case, theirs)


def _misses(setting: Setting, clients: Clients, case: Case, theirs: int) -> Iterator[Row]:
    with peili(setting.new("log"), *MEMORY_STORE, *static_router(case.peers)) as puller:
        first = miss(clients, puller.local, count=1)
        sides = [partial(miss, clients, port, seconds=setting.seconds) for port in (puller.local, theirs)]
        ours, others = take_turns(sides, rounds=setting.rounds)
    client = busy(ours, others)
    yield Row(GROUP, f"{case.what}: the first one", MILLISECONDS, (first.median,))
    medians = tuple(each.median for each in ours), _AGAINST, tuple(each.median for each in others)
    yield Row(GROUP, f"{case.what}: median", MILLISECONDS, *medians, case.median, client=client)
    p99 = tuple(each.p99 for each in ours), _AGAINST, tuple(each.p99 for each in others)
    yield Row(GROUP, f"{case.what}: p99", MILLISECONDS, *p99, case.p99, client=client)


def miss(clients: Clients, port: int, *, count: int = _ENOUGH, seconds: float | None = None) -> RequestResult:
    """Request `count` blobs that do not exist, one after the other, or as many as fit into `seconds`."""
    paths = [f"/v2/{REPOSITORY}/blobs/sha256:{secrets.token_hex(32)}?ns={REGISTRY}" for _ in range(count)]
    return clients.requests(port, "GET", paths, statuses=[404], connections=1, seconds=seconds)


def _peer(setting: Setting) -> AbstractContextManager[Peili]:
    return peili(setting.new("log"), *MEMORY_STORE, *NO_PEERS)


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"
