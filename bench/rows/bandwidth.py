"""How bandwidth is measured, for whoever serves or relays: each figure with what the server's CPU did for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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


def bandwidth(setting: Setting, clients: Clients, task: Task, ours: Side, theirs: Side) -> Iterator[Row]:
    """MB/s, and the server's CPU seconds for each GiB. Both have shown before that they send the right bytes."""
    digest = _digest(task.file, task.part)
    for side in (ours, theirs):
        clients.transfer(side.target, part=task.part, digest=digest)
    sides = [partial(_measure, clients, task, side) for side in (ours, theirs)]
    mine, others = take_turns(sides, rounds=setting.many_rounds if task.clients == 1 else setting.rounds)
    rates, costs = zip(*mine, strict=True)
    their_rates, their_costs = zip(*others, strict=True)
    yield Row(task.group, task.what, MB_PER_SECOND, rates, task.against, their_rates, task.budget)
    yield Row(task.group, f"{task.what}: CPU per GiB", CPU_SECONDS, costs, task.against, their_costs)


def _measure(clients: Clients, task: Task, side: Side) -> tuple[float, float]:
    pids = [process.pid for process in side.processes]
    before = cpu_seconds(pids)
    moved = clients.transfer(side.target, clients=task.clients, part=task.part)
    return moved.rate, (cpu_seconds(pids) - before) * _GIB / moved.size


def _digest(file: Path, part: range | None) -> str:
    if part is None:
        return f"sha256:{file.name}"  # an OCI image layout names each file so
    with file.open("rb") as opened:
        opened.seek(part.start)
        return f"sha256:{hashlib.sha256(opened.read(len(part))).hexdigest()}"
