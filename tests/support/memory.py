"""How much memory this process takes, for tests of flat memory. Linux only."""

from __future__ import annotations

import resource
from pathlib import Path


def resident() -> int:
    """Return the resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
