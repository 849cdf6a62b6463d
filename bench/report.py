"""A run as a JSON document, and back: every sample, the machine, and the versions of what took part."""

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

from bench.measure import AtMost, Budget, Place, Ratio, RatioOf, Row, Spread, Unit

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


def document(rows: Sequence[Row], on: Mapping[str, Any], *, quick: bool, seconds: float) -> dict[str, Any]:
    """The whole run."""
    return {
        "format": _FORMAT,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "seconds": round(seconds),
        "machine": dict(on),
        "rows": [as_object(row) for row in rows],
    }


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write it, making the folder; what was there stays until the new one is whole. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.new")
    unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(file)


def as_object(row: Row) -> dict[str, Any]:
    """One row. `ratio` is above 1 where ours is better; `met` is null where there is no budget."""
    return {
        "row": row.group,
        "what": row.what,
        "unit": row.unit.name,
        "more_is_better": row.unit.more_is_better,
        "ours": _samples(row.ours),
        "against": row.against or None,
        "reference": _samples(row.reference) if row.reference else None,
        "ratio": None if row.ratio is None else _rounded(row.ratio),
        "client_cpu": None if row.client is None else _round(row.client),
        "budget": None if row.budget is None else row.budget.text(row.unit),
        "met": row.met,
        "place": None if row.place is None else asdict(row.place),
    }


def rows_of(document: Mapping[str, Any]) -> list[Row]:
    """The rows that a document was made of. Raises ValueError where it is of another format."""
    if document.get("format") != _FORMAT:
        raise ValueError(f"this is format {document.get('format')}, not {_FORMAT}: measure anew")
    return [_row_of(each) for each in document["rows"]]


def _row_of(found: Mapping[str, Any]) -> Row:
    reference, place = found["reference"], found["place"]
    return Row(
        found["row"],
        found["what"],
        Unit(found["unit"], more_is_better=found["more_is_better"]),
        tuple(found["ours"]["samples"]),
        found["against"] or "",
        tuple(reference["samples"]) if reference else (),
        _budget_of(found["budget"]) if found["budget"] else None,
        Place(**place) if place else None,
        found["client_cpu"],
    )


def _budget_of(text: str) -> Budget:
    kind, number, _ = text.split(maxsplit=2)
    return RatioOf(float(number)) if kind == "≥" else AtMost(float(number))


def _samples(samples: Sequence[float]) -> dict[str, Any]:
    return {**_rounded(Spread.of(samples)), "samples": [_round(sample) for sample in samples]}


def _rounded(spread: Spread | Ratio) -> dict[str, float]:
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
