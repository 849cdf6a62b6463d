"""The base of the adapters that edit a container runtime's configuration, with the values that they return.

An editor puts peili's local door in front of registries (`apply`), takes it out again (`remove`), and reports what is
in force (`show`).
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from peili.adapters.files import atomic
from peili.mirror import PeiliError


class CannotEdit(PeiliError):
    """peili leaves a file unchanged. The message says why, in one line.

    Attributes:
        path: The file or directory, if it is known.
    """

    def __init__(self, reason: str, path: Path | None = None) -> None:
        self.path = path
        super().__init__(reason)


class Ambiguous(CannotEdit):
    """peili cannot tell how the program that reads the file understands it."""


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one file.

    Attributes:
        file: The file.
        before: Its content before the change; None if there was no file.
        after: Its content after the change; None if there is no file any more.
    """

    file: Path
    before: bytes | None
    after: bytes | None

    def __str__(self) -> str:
        verb = "created" if self.before is None else "removed" if self.after is None else "changed"
        return f"{verb} {self.file}"

    def diff(self) -> str:
        """Return the change as a unified diff."""
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
    """A file or directory that should have been changed but was not, with the reason in one line."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `apply` or `remove` changed, and what it could not change. Both are empty if there was nothing to do."""

    changes: tuple[Change, ...]
    problems: tuple[Problem, ...]


Report: TypeAlias = Callable[[Change | Problem | None], object]
"""What is called after each file, with what happened to it."""


@dataclass(frozen=True, slots=True)
class Edit:
    """The new content of one file, not written yet.

    Attributes:
        file: The file.
        before: Its present content; None if there is no file.
        after: Its new content; None if the file must be removed.
        created_levels: How much of the path peili created, and removes together with the file: 1 is the file only, 2
            the directory too, 3 that directory's parent too, and so on. Directories that hold anything else stay.
    """

    file: Path
    before: bytes | None
    after: bytes | None
    created_levels: int = 1


class RegistryView(Protocol):
    """What is in force for one registry; ``str()`` describes it in a few lines."""

    @property
    def registry(self) -> str:
        """The registry, or the runtime's name for every other registry."""
        ...

    @property
    def is_first(self) -> bool:
        """Whether the runtime asks peili first."""
        ...

    def json(self) -> dict[str, Any]:
        """Return the same for programs, as values that `json.dumps` accepts."""
        ...


ViewT = TypeVar("ViewT", bound=RegistryView)


class ConfigEditor(ABC, Generic[ViewT]):
    """Puts peili's local door in front of the registries of one container runtime, and takes it out again.

    The methods block: in asyncio, call them in a thread. Two runs that edit the same files, in one process or in
    several, wait for each other. Each file is replaced at once or not at all. If a run is interrupted, the next
    `apply` finishes its work, and the next `remove` undoes it. A file that cannot be edited safely stays unchanged and
    is named in the outcome; the other files are edited.

    A subclass provides `show` and the three methods whose names begin with an underscore.
    """

    def apply(self, *, dry_run: bool = False, report: Report | None = None) -> Outcome:
        """Put the door in front of every chosen registry for which it is not in front yet.

        Args:
            dry_run: Work out the changes, but write nothing.
            report: Called after each file with what happened to it; with None if it has the right content already.
        """
        return self._run(self._edits_to_apply, dry_run=dry_run, report=report)

    def remove(self, *, dry_run: bool = False, report: Report | None = None) -> Outcome:
        """Take out what `apply` put in for the chosen registries, with whatever URL and settings.

        What was there before remains, byte for byte, with the changes that others made since.

        Args:
            dry_run: Work out the changes, but write nothing.
            report: As for `apply`.
        """
        return self._run(self._edits_to_remove, dry_run=dry_run, report=report)

    @abstractmethod
    def show(self) -> list[ViewT]:
        """Return what is in force for each registry, whether peili or a user wrote it.

        Raises:
            OSError: A file can't be read.
        """

    @abstractmethod
    def _locked_paths(self) -> Sequence[Path]:
        """Return the files or directories that this editor changes. Other runs are kept out of them."""

    @abstractmethod
    def _edits_to_apply(self) -> Iterable[Callable[[], Edit]]:
        """Return one function for each edit. The function works the edit out, after the edits before it were written.

        The functions raise CannotEdit or OSError if the file must stay unchanged.
        """

    @abstractmethod
    def _edits_to_remove(self) -> Iterable[Callable[[], Edit]]:
        """Yield the edits of `remove`, as `_edits_to_apply` does for `apply`."""

    def _run(
        self, plan: Callable[[], Iterable[Callable[[], Edit]]], *, dry_run: bool, report: Report | None
    ) -> Outcome:
        done: list[Change | Problem | None] = []

        def note(result: Change | Problem | None) -> None:
            done.append(result)
            if report is not None:
                report(result)

        paths = self._locked_paths()
        try:
            with nullcontext() if dry_run else atomic.lock(paths):
                if not dry_run:
                    atomic.remove_leftovers(paths)
                for make_edit in plan():
                    note(_run_edit(make_edit, dry_run=dry_run))
        except (CannotEdit, OSError) as error:
            note(_problem(error, paths[0]))
        changes = tuple(each for each in done if isinstance(each, Change))
        return Outcome(changes, tuple(each for each in done if isinstance(each, Problem)))


def _run_edit(make_edit: Callable[[], Edit], *, dry_run: bool) -> Change | Problem | None:
    """Make one edit and write it. Return None if the file has the right content already."""
    file: Path | None = None
    try:
        edit = make_edit()
        file = edit.file
        if edit.before == edit.after:
            return None
        if not dry_run:
            _write(edit)
    except (CannotEdit, OSError) as error:
        return _problem(error, file)
    return Change(file, edit.before, edit.after)


def _write(edit: Edit) -> None:
    if edit.after is None:
        atomic.remove(edit.file, created_levels=edit.created_levels)
    else:
        atomic.replace(edit.file, edit.after)


def _problem(error: CannotEdit | OSError, file: Path | None) -> Problem:
    if isinstance(error, OSError):
        return Problem(file or Path(error.filename or ""), f"not changed: {error.strerror}")
    return Problem(error.path or file or Path(), f"not changed: {error}")
