"""A run as a JSON document: every sample, the machine, and the versions of all programs that took part."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from tests.lab.processes import ENVIRONMENT

from bench.measure import Busy, Row, Spread

RESULTS = Path(__file__).parent / "results"
"""Where runs are kept. The last whole run of each group has a file of its own, which is in git."""

_FORMAT = 3
"""Raised when a reader of older documents would misread a newer one."""
_PACKAGES = ("peili", "uvicorn", "httptools", "uvloop", "starlette", "httpx", "grpcio")
_PROGRAMS = {"nginx": "-v", "docker-registry": "--version", "containerd": "--version", "openssl": "version"}
_VERSION = re.compile(r"\d+\.\d+[\w.~+-]*")


def machine() -> dict[str, Any]:
    """Describe the machine and its software. The load average from before the run shows what else the machine did."""
    return {
        "processor": _first(r"^model name\s*: (.+)$", "/proc/cpuinfo") or platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _package(name)) is not None},
        "programs": {name: found for name, flag in _PROGRAMS.items() if (found := _program(name, flag)) is not None},
        "commit": _commit(),
    }


def summary(host: Mapping[str, Any]) -> str:
    """Return one line about what `machine()` returned."""
    programs = ", ".join(f"{name} {number}" for name, number in host["programs"].items())
    return (
        f"{host['processors']} x {host['processor']}, {host['memory_gib']} GiB, {host['system']}, "
        f"kernel {host['kernel']}, Python {host['python']}, {programs}; load average before: {host['load_average']:.1f}"
    )


def document(
    rows: Sequence[Row],
    host: Mapping[str, Any],
    *,
    is_whole: bool,
    seconds: float,
    groups: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return a run as a document.

    Args:
        rows: What was measured.
        host: What `machine` returned before the run.
        is_whole: Whether each group was measured with all its rows, in their full size.
        seconds: How long the run took.
        groups: The seconds of each group of rows that was measured without an error.
    """
    return {
        "format": _FORMAT,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "is_whole": is_whole,
        "seconds": round(seconds),
        "seconds_of": {name: round(took) for name, took in (groups or {}).items()},
        "machine": dict(host),
        "rows": [as_object(row) for row in rows],
    }


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Replace `file` at once, and make its folder if needed. Each row is one line. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.new")
    entries = ",\n".join(f'"{name}": {_lines(value)}' for name, value in content.items())
    unfinished.write_text(f"{{\n{entries}\n}}\n", encoding="utf-8")
    unfinished.replace(file)


def _lines(value: Any) -> str:
    """Return JSON in which each item of a list has one line."""
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return "[\n" + ",\n".join(map(_lines, cast("Sequence[object]", value))) + "\n]"


def read(file: Path) -> dict[str, Any]:
    """Read a run that `write` wrote.

    Raises:
        OSError: The file can't be read.
        ValueError: It is something else, or of another format.
    """
    try:
        content: Any = json.loads(file.read_bytes())
        found = content["format"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file}: not what `python -m bench` writes") from None
    if found != _FORMAT:
        raise ValueError(f"{file}: written in format {found}; this version reads {_FORMAT}: measure again")
    return dict(content)


def keep(run: Mapping[str, Any], folder: Path) -> list[str]:
    """Write one file for each group that `run` measured without an error, and return the names of the groups.

    Raises:
        ValueError: The run left out rows, or had small sizes.
        OSError: A file can't be written.
    """
    if not run["is_whole"]:
        raise ValueError("a run with --quick or --only is not published; measure whole groups")
    for group, seconds in run["seconds_of"].items():
        rows = [row for row in run["rows"] if row["row"] == group]
        write(folder / f"{group}.json", {**run, "seconds": seconds, "seconds_of": {group: seconds}, "rows": rows})
    return [*run["seconds_of"]]


def kept(groups: Iterable[str], folder: Path) -> list[dict[str, Any]]:
    """Return the last run of each group that has one, in the order of `groups`. Raises as `read` does."""
    return [read(file) for group in groups if (file := folder / f"{group}.json").exists()]


def as_object(row: Row) -> dict[str, Any]:
    """Return one row.

    `ratio` is above 1 if ours is better. `spread` is that of the ratios of each round, or of ours without a reference.
    `met` is null without a budget.
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
    """Return the client's share of CPU time; `limited` names the sides for which that is nearly all of a second."""
    return {
        "ours": _samples(busy.ours, digits=2),
        "reference": _samples(busy.reference, digits=2) if busy.reference else None,
        "limited": list(busy.limited),
    }


def _samples(samples: Sequence[float], *, digits: int = 5) -> dict[str, Any]:
    rounded = [_round(sample, digits) for sample in samples]
    return {**_rounded(Spread.of(samples), digits), "samples": rounded}


def _rounded(spread: Spread, digits: int = 5) -> dict[str, float]:
    return {name: _round(value, digits) for name, value in asdict(spread).items()}


def _round(value: float, digits: int = 5) -> float:
    return float(f"{value:.{digits}g}")


def _first(pattern: str, file: str) -> str | None:
    found = re.search(pattern, Path(file).read_text(encoding="utf-8"), re.MULTILINE)
    return None if found is None else found[1]


def _package(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _program(name: str, flag: str) -> str | None:
    path = shutil.which(name, path=ENVIRONMENT["PATH"])
    if path is None:
        return None
    done = subprocess.run([path, flag], capture_output=True, text=True, check=False)
    found = _VERSION.search(done.stdout + done.stderr)
    return None if found is None else found[0]


def _commit() -> str | None:
    """Return the measured commit; None outside a checkout or without git."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
