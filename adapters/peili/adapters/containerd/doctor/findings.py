"""What the doctor says: one finding for each thing that it looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class Level(Enum):
    """How bad it is: as it should be; worth a look; in the way of this host's containerd, or of its peers."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a diagnosis: what was looked at (`about`), what was found, and how to mend it if that is needed."""

    level: Level
    about: str
    what: str
    mend: str = ""

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "level": self.level.value}

    def __str__(self) -> str:
        mend = f"\n{'':6}mend: {self.mend}" if self.mend else ""
        return f"{self.level.value:4}  {self.about}: {self.what}{mend}"


def verdict(findings: Sequence[Finding]) -> str:
    """All of them in one line."""
    failed, warned = (sum(each.level is level for each in findings) for level in (Level.FAIL, Level.WARN))
    warnings = f"{warned} warning{'' if warned == 1 else 's'}"
    if failed:
        return f"{failed} failed, {warnings}: mend what failed, the first one first"
    return f"nothing failed; {warnings}" if warned else "the mirror is used as it should be"


def ok(about: str, what: str) -> Finding:
    """As it should be."""
    return Finding(Level.OK, about, what)


def warn(about: str, what: str, mend: str) -> Finding:
    """Worth a look."""
    return Finding(Level.WARN, about, what, mend)


def fail(about: str, what: str, mend: str) -> Finding:
    """In the way of this host's containerd, or of its peers."""
    return Finding(Level.FAIL, about, what, mend)
