"""What `apply` and `remove` did, or would do."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Change:
    """A file's content before and after; None where there is no file."""

    file: Path
    before: bytes | None
    after: bytes | None

    def __str__(self) -> str:
        what = "made" if self.before is None else "removed" if self.after is None else "changed"
        return f"{what} {self.file}"

    def diff(self) -> str:
        """As a unified diff."""
        old, new = ("/dev/null" if side is None else str(self.file) for side in (self.before, self.after))
        return "".join(
            line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
            for line in difflib.unified_diff(_lines(self.before), _lines(self.after), old, new)
        )


def _lines(content: bytes | None) -> list[str]:
    text = (content or b"").decode(errors="replace")
    return [f"{line}\n" for line in text.split("\n")[:-1]] + [last for last in text.split("\n")[-1:] if last]


@dataclass(frozen=True, slots=True)
class Problem:
    """A file or directory that was left alone, and why, in one line."""

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was changed, and what was left alone though it should have been; no change where all was right already."""

    changes: tuple[Change, ...]
    problems: tuple[Problem, ...]
