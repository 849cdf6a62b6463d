"""What keeps an adapter from touching a file."""

from __future__ import annotations

from pathlib import Path

from peili.mirror import PeiliError


class LeftAlone(PeiliError):
    """A file or directory that is left as it is; the message says why, in one line. `path`, where known, is which."""

    def __init__(self, why: str, path: Path | None = None) -> None:
        self.path = path
        super().__init__(why)


class Unclear(LeftAlone):
    """It can't be told what the program that reads the file makes of it."""
