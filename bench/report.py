"""A run as a JSON document: every sample, the machine, and the versions of what took part."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.lab.processes import ENVIRONMENT

from bench.measure import Busy, Row, Spread

_FORMAT = 2
"""Raised when a reader of older documents would misread a newer one."""
_PACKAGES = ("peili", "uvicorn", "httptools", "uvloop", "starlette", "httpx", "grpcio")
_PROGRAMS = {"nginx": "-v", "docker-registry": "--version", "containerd": "--version", "openssl": "version"}
_VERSION = re.compile(r"\d+\.\d+[\w.~+-]*")


def machine() -> dict[str, Any]:
    """What the figures were taken on. The load average is that of before: what else the machine was busy with."""
    return {
        "processor": _first(r"^model name\s*: (.+)$", "/proc/cpuinfo") or platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _package(name)) is not None},
        "programs": {name: found for name, how in _PROGRAMS.items() if (found := _program(name, how)) is not None},
        "commit": _commit(),
    }


def summary(of: Mapping[str, Any]) -> str:
    """`machine()` in a line."""
    programs = ", ".join(f"{name} {number}" for name, number in of["programs"].items())
    return (
        f"{of['processors']} x {of['processor']}, {of['memory_gib']} GiB, {of['system']}, kernel {of['kernel']}, "
        f"Python {of['python']}, {programs}; load average before: {of['load_average']:.1f}"
    )


def document(
    rows: Sequence[Row],
    on: Mapping[str, Any],
    *,
    quick: bool,
    seconds: float,
    groups: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The whole run. It took `seconds`, and each of the `groups` of rows as many as are told with its name."""
    return {
        "format": _FORMAT,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "seconds": round(seconds),
        "seconds_of": {name: round(took) for name, took in (groups or {}).items()},
        "machine": dict(on),
        "rows": [as_object(row) for row in rows],
    }


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write it, making the folder; what was there stays until the new one is whole. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.new")
    unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(file)


def read(file: Path) -> dict[str, Any]:
    """A run that `write` has written. Raises OSError, and ValueError for anything else."""
    try:
        content: Any = json.loads(file.read_bytes())
        found = content["format"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file}: not what `python -m bench` writes") from None
    if found != _FORMAT:
        raise ValueError(f"{file}: written in format {found}; this version reads {_FORMAT}: measure again")
    return dict(content)


def as_object(row: Row) -> dict[str, Any]:
    """One row. `ratio` is above 1 where ours is better; `spread` is that of the ratios round by round, or of ours where
    there is no reference; `met` is null where there is no budget.
    """
    return {
        "row": row.group,
        "what": row.what,
        "unit": row.unit.name,
        "more_is_better": row.unit.more_is_better,
        "ours": _samples(row.ours),
        "against": row.against or None,
        "reference": _samples(row.reference) if row.reference else None,
        "ratio": None if row.ratio is None else _round(row.ratio),
        "spread": None if row.spread is None else _rounded(row.spread),
        "budget": None if row.budget is None else row.budget.text(row.unit),
        "met": row.met,
        "client": None if row.client is None else _client(row.client),
        "place": None if row.place is None else asdict(row.place),
    }


def _client(busy: Busy) -> dict[str, Any]:
    """Of a second, how much the client was computing; `limited` names the sides where that is nearly all of it."""
    return {
        "ours": _samples(busy.ours),
        "reference": _samples(busy.reference) if busy.reference else None,
        "limited": list(busy.limited),
    }


def _samples(samples: Sequence[float]) -> dict[str, Any]:
    return {**_rounded(Spread.of(samples)), "samples": [_round(sample) for sample in samples]}


def _rounded(spread: Spread) -> dict[str, float]:
    return {name: _round(value) for name, value in asdict(spread).items()}


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def _first(pattern: str, file: str) -> str | None:
    found = re.search(pattern, Path(file).read_text(encoding="utf-8"), re.MULTILINE)
    return None if found is None else found[1]


def _package(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _program(name: str, how: str) -> str | None:
    path = shutil.which(name, path=ENVIRONMENT["PATH"])
    if path is None:
        return None
    told = subprocess.run([path, how], capture_output=True, text=True, check=False)
    found = _VERSION.search(told.stdout + told.stderr)
    return None if found is None else found[0]


def _commit() -> str | None:
    """The commit that is measured, where this is a checkout and git is there."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "describe", "--always", "--dirty"]
    told = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return told.stdout.strip() or None
