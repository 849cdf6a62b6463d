"""Names for the directories and network namespaces that a test run creates. A name holds the id of the run's process.

A later run can therefore recognise, and remove, what a killed run left on the machine.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

_PREFIX = "peili-lab"
_serial = itertools.count()

PATTERN = f"{_PREFIX}-*"
"""Glob pattern that matches the names of all runs."""


def new_name() -> str:
    """Return a name that no other laboratory on this machine uses."""
    return f"{_PREFIX}-{os.getpid()}-{next(_serial)}"


def is_stale(name: str) -> bool:
    """Return whether the process that made `name` has ended."""
    return not Path("/proc", name.removeprefix(_PREFIX).split("-")[1]).exists()
