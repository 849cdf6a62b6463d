"""Prints what `peili hosts` does to files."""

from __future__ import annotations

import sys
import time

from peili.adapters.files.editor import Change, Problem

_SILENCE = 1.0
"""Seconds after which a run on a terminal shows how many files it has looked at."""
_PAUSE = 0.1
_ERASE = "\r\x1b[K"


class OutcomePrinter:
    """Prints each change on standard output and each problem on standard error, as soon as it is called with it.

    A run over many files, most of which have the right content already, prints little. Therefore it shows on a terminal
    how many files it has looked at, when it takes longer.

    Args:
        dry_run: Print the changes as a diff.
        note: A line that follows each change that was made.
        silence: Seconds after which the number of files is shown.
    """

    def __init__(self, *, dry_run: bool, note: str = "", silence: float = _SILENCE) -> None:
        self._dry_run = dry_run
        self._note = note
        self._files = self._changes = self._problems = 0
        self._next = time.monotonic() + silence
        self._is_shown = False
        self._error: OSError | None = None

    def __call__(self, result: Change | Problem | None) -> None:
        """Print what happened to a file; None means that it has the right content already. Never raises."""
        self._files += 1
        self._changes += isinstance(result, Change)
        self._problems += isinstance(result, Problem)
        if self._error is None:
            try:
                self._print(result)
            except OSError as error:  # nobody reads on: the files are changed all the same
                self._error = error

    def _print(self, result: Change | Problem | None) -> None:
        if result is not None:
            self._erase()
        if isinstance(result, Change):
            lines = [str(result), *filter(None, [self._note]), ""]
            sys.stdout.write(result.diff() if self._dry_run else "\n".join(lines))
            sys.stdout.flush()
        elif result is not None:
            sys.stderr.write(f"peili: {result}\n")
        if sys.stderr.isatty() and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PAUSE
            self._is_shown = True
            sys.stderr.write(f"{_ERASE}files looked at: {self._files}, changed: {self._changes} …")
            sys.stderr.flush()

    def end(self, nothing: str) -> int:
        """End the output.

        Args:
            nothing: The line for a run without changes and problems.

        Returns:
            The exit code: 1 if there were problems.

        Raises:
            OSError: The output could not be written, for example because its reader has ended.
        """
        if self._error is not None:
            raise self._error
        self._erase()
        if not self._changes and not self._problems:
            sys.stdout.write(f"{nothing}\n")
        return 1 if self._problems else 0

    def _erase(self) -> None:
        if self._is_shown:
            self._is_shown = False
            sys.stderr.write(_ERASE)
            sys.stderr.flush()
