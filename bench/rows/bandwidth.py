"""How bandwidth is measured, for whoever serves or relays: each figure with what the server's CPU did for it."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.lab.processes import Process

from bench.clients import Clients, Target
from bench.measure import CPU_SECONDS, MB_PER_SECOND, Budget, Row, take_turns
from bench.setting import Setting
from bench.usage import cpu_seconds

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Side:
    """Who sends, and which processes work for it."""

    target: Target
    processes: tuple[Process, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """What is fetched at a time: `file`, or a part of it, by some clients at once."""

    group: str
    what: str
    against: str
    file: Path
    clients: int = 1
    part: range | None = None
    budget: Budget | None = None


class _Sample(NamedTuple):
    """MB/s; CPU seconds of the server for each GiB; of each second, how much of it one client was computing."""

    rate: float
    cost: float
    client: float


def bandwidth(setting: Setting, clients: Clients, task: Task, ours: Side, theirs: Side) -> Iterator[Row]:
    """MB/s, and the server's CPU seconds for each GiB. Both have shown before that they send the right bytes."""
    digest = _digest(task.file, task.part)
    for side in (ours, theirs):
        clients.transfer(side.target, part=task.part, digest=digest)
    times = _times(setting, clients, task, (ours, theirs))
    sides = [partial(_measure, clients, task, side, times) for side in (ours, theirs)]
    mine, others = take_turns(sides, rounds=setting.many_rounds if task.clients == 1 else setting.rounds)
    against, reference = task.against, tuple(each.rate for each in others)
    client = statistics.median(each.client for each in mine)
    rates = tuple(each.rate for each in mine)
    yield Row(task.group, task.what, MB_PER_SECOND, rates, against, reference, task.budget, client=client)
    costs, their_costs = (tuple(each.cost for each in side) for side in (mine, others))
    yield Row(task.group, f"{task.what}: CPU per GiB", CPU_SECONDS, costs, against, their_costs)


def _times(setting: Setting, clients: Clients, task: Task, sides: Sequence[Side]) -> int:
    """How many transfers one after the other are a sample: as many as take about a second.

    A single short one tells more of which processors it happened to be on than of who sends.
    """
    slowest = max(clients.transfer(side.target, clients=task.clients, part=task.part).seconds for side in sides)
    return max(1, round(setting.pick(1, 0) / slowest))


def _measure(clients: Clients, task: Task, side: Side, times: int) -> _Sample:
    pids = [process.pid for process in side.processes]
    before = cpu_seconds(pids)
    moved = [clients.transfer(side.target, clients=task.clients, part=task.part) for _ in range(times)]
    size, seconds = sum(each.size for each in moved), sum(each.seconds for each in moved)
    client = sum(each.client_cpu * each.seconds for each in moved) / seconds / task.clients
    return _Sample(size / seconds / 1e6, (cpu_seconds(pids) - before) * _GIB / size, client)


def _digest(file: Path, part: range | None) -> str:
    if part is None:
        return f"sha256:{file.name}"  # an OCI image layout names each file so
    with file.open("rb") as opened:
        opened.seek(part.start)
        return f"sha256:{hashlib.sha256(opened.read(len(part))).hexdigest()}"
