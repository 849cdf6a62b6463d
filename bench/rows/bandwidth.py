"""Measures the bandwidth of a server or a relay, and the CPU time that it needs.

One transfer takes only a fraction of a second, and its speed depends on the scheduler's choice of processors. Therefore
a sample consists of as many transfers, one after the other, as take about a second. Its figure is the bytes of all
transfers divided by their time.
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
    """One side of a comparison: what the client requests, and the processes whose CPU time counts."""

    target: Target
    processes: tuple[Process, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """What is measured.

    Attributes:
        group: See `Row`.
        what: See `Row`.
        against: See `Row`.
        file: The file that both sides send. Its name is the digest without the algorithm.
        clients: The number of clients at the same time.
        part: The bytes to request. None is the whole file.
        budget: The budget of the bandwidth.
    """

    group: str
    what: str
    against: str
    file: Path
    clients: int = 1
    part: range | None = None
    budget: Budget | None = None


def bandwidth(setting: Setting, clients: Clients, task: Task, ours: Side, theirs: Side) -> Iterator[Row]:
    """Yield a row in MB/s, and one in CPU seconds per GiB. Both sides first have to send the right bytes."""
    digest = _digest(task.file, task.part)
    for side in (ours, theirs):
        clients.transfer(side.target, part=task.part, digest=digest)
    times = _transfers_per_sample(setting, clients, task, (ours, theirs))
    sides = [partial(_measure, clients, task, side, times) for side in (ours, theirs)]
    rounds = setting.many_rounds if task.clients == 1 else setting.rounds
    mine, others = take_turns(sides, rounds=rounds, warm_up=False)
    rates, costs, busy = zip(*mine, strict=True)
    their_rates, their_costs, their_busy = zip(*others, strict=True)
    client = Busy(busy, their_busy)
    yield Row(task.group, task.what, MB_PER_SECOND, rates, task.against, their_rates, task.budget, client=client)
    yield Row(task.group, f"{task.what}: CPU per GiB", CPU_SECONDS, costs, task.against, their_costs)


def _transfers_per_sample(setting: Setting, clients: Clients, task: Task, sides: Sequence[Side]) -> int:
    """Return how many transfers take about `setting.seconds`, as a mean of both sides. This also warms them up."""
    took = [clients.transfer(side.target, clients=task.clients, part=task.part).seconds for side in sides]
    return max(1, round(len(took) * setting.seconds / sum(took)))


def _measure(clients: Clients, task: Task, side: Side, times: int) -> tuple[float, float, float]:
    """Take a sample: MB/s, CPU seconds per GiB, and how busy the client was."""
    pids = [process.pid for process in side.processes]
    before = cpu_seconds(pids)
    result = clients.transfer(side.target, clients=task.clients, times=times, part=task.part)
    return result.rate, (cpu_seconds(pids) - before) * _GIB / result.size, result.client


def _digest(file: Path, part: range | None) -> str:
    if part is None:
        return f"sha256:{file.name}"  # the file is in an OCI image layout
    with file.open("rb") as opened:
        opened.seek(part.start)
        return f"sha256:{hashlib.sha256(opened.read(len(part))).hexdigest()}"
