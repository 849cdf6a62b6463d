"""What k3s and RKE2 write for containerd each time they start: nobody else's change to it lasts. Needs no extra."""

from __future__ import annotations

import os
from pathlib import Path

_BELOW = "/agent/etc/containerd/"

COMMAND = "peili hosts apply --format k3s"
"""What changes the file that they write it from."""


def is_generated(path: Path) -> bool:
    """Whether `path` is their containerd's configuration, or a folder or file below it."""
    return _BELOW in f"{os.path.realpath(path)}/"
