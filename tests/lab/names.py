"""Names of what a run leaves in the file system, which tell whether the run is still there."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

_MARK = "peili-lab"
_serial = itertools.count()

PATTERN = f"{_MARK}-*"
"""Matches the names of all runs."""


def new_name() -> str:
    """A name that no other laboratory on this machine has."""
    return f"{_MARK}-{os.getpid()}-{next(_serial)}"


def is_stale(name: str) -> bool:
    """Whether the run that made `name` is no more."""
    return not Path("/proc", name.removeprefix(_MARK).split("-")[1]).exists()
