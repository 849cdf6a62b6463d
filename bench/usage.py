"""What processes cost: CPU seconds and memory, from proc(5)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_KIB = re.compile(r"^(\w+): +(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Stat:
    """Of /proc/PID/stat: the parent, and the CPU seconds, those of children that were waited for included."""

    parent: int
    cpu: float


@dataclass(frozen=True, slots=True)
class Memory:
    """In MiB: resident, the most that ever was resident, and resident where shared pages count by their share."""

    resident: float
    peak: float
    proportional: float


def parse_stat(text: str) -> Stat:
    """What a line of /proc/PID/stat says; the name in it may hold anything, brackets and spaces too."""
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(int(fields[1]), sum(map(int, fields[11:15])) / _TICKS)


def cpu_seconds(pids: Iterable[int]) -> float:
    """What the processes `pids` and all of their descendants have used so far; to 1/100 s."""
    stats = _stats()
    return sum(stats[pid].cpu for pid in _family(stats, pids))


def memory(pid: int) -> Memory:
    """Of one process. Raises OSError when there is none."""
    status = _kibibytes(_PROC / str(pid) / "status")
    rollup = _kibibytes(_PROC / str(pid) / "smaps_rollup")
    return Memory(status["VmRSS"] / 1024, status["VmHWM"] / 1024, rollup["Pss"] / 1024)


def forget_peak(pid: int) -> None:
    """From now on `Memory.peak` counts anew (proc(5), clear_refs). Raises OSError."""
    (_PROC / str(pid) / "clear_refs").write_text("5")


def _kibibytes(file: Path) -> Mapping[str, int]:
    return {name: int(value) for name, value in _KIB.findall(file.read_text().replace("\t", " "))}


def _stats() -> Mapping[int, Stat]:
    stats: dict[int, Stat] = {}
    for each in _PROC.iterdir():
        if each.name.isdecimal():
            with suppress(OSError):  # it has ended since it was listed
                stats[int(each.name)] = parse_stat((each / "stat").read_text())
    return stats


def _family(stats: Mapping[int, Stat], pids: Iterable[int]) -> set[int]:
    family = {pid for pid in pids if pid in stats}
    while more := {pid for pid, stat in stats.items() if stat.parent in family} - family:
        family |= more
    return family
