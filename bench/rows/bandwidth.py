"""How bandwidth is measured, for whoever serves or relays: each figure with what the server's CPU did for it.

One transfer is over in a fraction of a second, and how fast it was is luck: who ran on which processor. So a sample is
as many of them as last about a second, one after the other, and its figure is all of their bytes by all of the time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.lab.processes import Process

from bench.clients import Clients, Target
from bench.measure import CPU_SECONDS, MB_PER_SECOND, Budget, Busy, Row, take_turns
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
    times = _how_often(setting, clients, task, (ours, theirs))
    sides = [partial(_measure, clients, task, side, times) for side in (ours, theirs)]
    rounds = setting.many_rounds if task.clients == 1 else setting.rounds
    mine, others = take_turns(sides, rounds=rounds, warm_up=False)
    rates, costs, busy = zip(*mine, strict=True)
    their_rates, their_costs, their_busy = zip(*others, strict=True)
    client = Busy(busy, their_busy)
    yield Row(task.group, task.what, MB_PER_SECOND, rates, task.against, their_rates, task.budget, client=client)
    yield Row(task.group, f"{task.what}: CPU per GiB", CPU_SECONDS, costs, task.against, their_costs)


def _how_often(setting: Setting, clients: Clients, task: Task, sides: Sequence[Side]) -> int:
    """How many transfers last about `setting.seconds`, both sides taken together; this is their warm-up, too."""
    took = [clients.transfer(side.target, clients=task.clients, part=task.part).seconds for side in sides]
    return max(1, round(len(took) * setting.seconds / sum(took)))


def _measure(clients: Clients, task: Task, side: Side, times: int) -> tuple[float, float, float]:
    """MB/s, CPU seconds for each GiB, and how busy the client was."""
    pids = [process.pid for process in side.processes]
    before = cpu_seconds(pids)
    moved = clients.transfer(side.target, clients=task.clients, times=times, part=task.part)
    return moved.rate, (cpu_seconds(pids) - before) * _GIB / moved.size, moved.client


def _digest(file: Path, part: range | None) -> str:
    if part is None:
        return f"sha256:{file.name}"  # an OCI image layout names each file so
    with file.open("rb") as opened:
        opened.seek(part.start)
        return f"sha256:{hashlib.sha256(opened.read(len(part))).hexdigest()}"
