"""The CPU time and memory of processes, from proc(5)."""

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
    """The content of /proc/PID/stat: the parent's id, and the CPU seconds, including those of reaped children."""

    parent: int
    cpu: float


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a process in MiB.

    Attributes:
        resident: The resident set size.
        peak: The largest resident set size so far.
        proportional: The proportional set size, which counts shared pages in part.
    """

    resident: float
    peak: float
    proportional: float


def parse_stat(text: str) -> Stat:
    """Parse the content of /proc/PID/stat. The process's name in it may contain brackets and spaces."""
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(int(fields[1]), sum(map(int, fields[11:15])) / _TICKS)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU seconds of the processes `pids` and all their descendants so far, with a resolution of 0.01 s."""
    stats = _stats()
    return sum(stats[pid].cpu for pid in _family(stats, pids))


def machine_seconds() -> float:
    """Return the CPU seconds of all processes and of the kernel so far, on all processors together."""
    user, nice, system, _idle, _waiting, *rest = (_PROC / "stat").read_text().splitlines()[0].split()[1:]
    interrupts = rest[:2]
    return sum(map(int, (user, nice, system, *interrupts))) / _TICKS


def memory(pid: int) -> Memory:
    """Return the memory of a process. Raises OSError if it does not exist."""
    status = _kibibytes(_PROC / str(pid) / "status")
    rollup = _kibibytes(_PROC / str(pid) / "smaps_rollup")
    return Memory(status["VmRSS"] / 1024, status["VmHWM"] / 1024, rollup["Pss"] / 1024)


def forget_peak(pid: int) -> None:
    """Reset `Memory.peak` of a process (proc(5), clear_refs). Raises OSError."""
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
