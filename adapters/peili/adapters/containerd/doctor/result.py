"""The result of one of the doctor's checks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

_DAY, _HOUR, _MINUTE = 86400, 3600, 60


class Level(Enum):
    """How a check ended.

    OK: all is well. WARN: something may be wrong. FAIL: this host's containerd, or its peers, cannot use the mirror.
    """

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check.

    Attributes:
        level: How the check ended.
        about: What was checked.
        what: What was found.
        fix: How to fix it; empty if nothing is wrong.
    """

    level: Level
    about: str
    what: str
    fix: str = ""

    def json(self) -> dict[str, Any]:
        """Return the result for programs, as values that `json.dumps` accepts."""
        return {**asdict(self), "level": self.level.value}

    def __str__(self) -> str:
        fix = f"\n{'':6}fix: {self.fix}" if self.fix else ""
        return f"{self.level.value:4}  {self.about}: {self.what}{fix}"


def ok(about: str, what: str) -> CheckResult:
    """Return a result for something that is well."""
    return CheckResult(Level.OK, about, what)


def warn(about: str, what: str, fix: str) -> CheckResult:
    """Return a result for something that may be wrong."""
    return CheckResult(Level.WARN, about, what, fix)


def fail(about: str, what: str, fix: str) -> CheckResult:
    """Return a result for something that keeps containerd or peers from using the mirror."""
    return CheckResult(Level.FAIL, about, what, fix)


def summary(results: Sequence[CheckResult]) -> str:
    """Return one line that sums up all results."""
    failed, warned = (sum(each.level is level for each in results) for level in (Level.FAIL, Level.WARN))
    warnings = f"{warned} warning{'' if warned == 1 else 's'}"
    if failed:
        return f"{failed} failed, {warnings}: fix what failed, starting with the first"
    return f"nothing failed; {warnings}" if warned else "all is well: containerd uses the mirror"


def as_root() -> str:
    """Return the advice to run as root, as the beginning of a fix; empty if this process is root already."""
    return "" if os.geteuid() == 0 else "run as root, or "


def ago(seconds: float) -> str:
    """Return a time as text, such as ``5 minutes``."""
    for length, name in ((_DAY, "days"), (_HOUR, "hours"), (_MINUTE, "minutes")):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {name}"
    return f"{max(0, int(seconds))} seconds"
