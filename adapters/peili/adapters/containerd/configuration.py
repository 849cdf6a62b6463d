"""containerd's configuration as it is in force: its files, what they import, and how containerd puts them together.

By docs/man/containerd-config.toml.5 and docs/PLUGINS.md, and by what 1.6 makes of them. What of it matters to a mirror
is said in registries.py.
"""

from __future__ import annotations

import glob
import os
import tomllib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from peili.adapters.containerd.meaning import Version
from peili.mirror import PeiliError

DEFAULT_FILE = Path("/etc/containerd/config.toml")

Table = Mapping[str, Any]


class Unreadable(PeiliError):
    """A file of containerd's configuration can't be read; the message says which and why, in one line."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the files say together.

    Attributes:
        files: those that were read, in containerd's order: later ones win.
        plugins: the table of each plug-in, by the name that its file calls it.
        origin: which file each plug-in's table is from, or was last changed by.
        hidden: tables that a later file has replaced altogether, as 1.x does: plug-in, file, and by which file.
        dead: imports that match no file.
        disabled: the plug-ins that are switched off.
        version: the first file's ``version``.
    """

    files: tuple[Path, ...] = ()
    plugins: Mapping[str, Table] = field(default_factory=dict[str, Table])
    origin: Mapping[str, Path] = field(default_factory=dict[str, Path])
    hidden: tuple[tuple[str, Path, Path], ...] = ()
    dead: tuple[str, ...] = ()
    disabled: tuple[str, ...] = ()
    version: int = 1

    def table(self, plugin: str, *path: str) -> Table:
        """The table at `path` below a plug-in's; empty where there is none."""
        table: Any = self.plugins.get(plugin, {})
        for name in path:
            table = _as_table(table).get(name, {})
        return _as_table(table)


def read(path: Path, version: Version | None, working_directory: Path = Path("/")) -> Configuration:
    """What a containerd of that `version` that was started with `path` reads. Where it is not known, the file's own
    version tells: 3 is new in 2.0. Raises Unreadable, where containerd would not start, either.
    """
    waiting, merged = deque([path.absolute()]), _Merged()
    while waiting:
        file = waiting.popleft()
        if file in merged.files:
            continue
        document = _document(file)
        first = not merged.files
        if first:
            merged.version = _version(document)
            merged.deep = version.major >= 2 if version is not None else merged.version >= 3
        merged.add(file, document)
        for pattern in _texts(document.get("imports")):
            found = _imported(file, pattern, deep=merged.deep, working_directory=working_directory)
            if not found:
                merged.dead.append(pattern)
            waiting.extend(found)
    return merged.done()


class _Merged:
    """The files so far. containerd 2.x merges tables, 1.x replaces the whole of a plug-in's."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.dead: list[str] = []
        self.disabled: list[str] = []
        self.version = 1
        self.deep = False
        self._plugins: dict[str, Table] = {}
        self._origin: dict[str, Path] = {}
        self._hidden: list[tuple[str, Path, Path]] = []

    def add(self, file: Path, document: Table) -> None:
        self.files.append(file)
        self.disabled += _texts(document.get("disabled_plugins"))
        for name, table in _as_table(document.get("plugins")).items():
            before = self._plugins.get(name)
            if before is not None and not self.deep:
                self._hidden.append((name, self._origin[name], file))
            self._plugins[name] = _merge(before, _as_table(table)) if before and self.deep else _as_table(table)
            self._origin[name] = file

    def done(self) -> Configuration:
        return Configuration(
            files=tuple(self.files),
            plugins=self._plugins,
            origin=self._origin,
            hidden=tuple(self._hidden),
            dead=tuple(self.dead),
            disabled=tuple(self.disabled),
            version=self.version,
        )


def _merge(before: Table, after: Table) -> Table:
    merged = dict(before)
    for key, value in after.items():
        old = merged.get(key)
        merged[key] = _merge(cast("Table", old), cast("Table", value)) if _both_tables(old, value) else value
    return merged


def _both_tables(one: object, other: object) -> bool:
    return isinstance(one, dict) and isinstance(other, dict)


def _imported(parent: Path, pattern: str, *, deep: bool, working_directory: Path) -> list[Path]:
    """The files that an import names. 1.x looks for a relative pattern from where it was started, not from the file
    that has it; a name without ``*`` is relative to the file in each version.
    """
    if "*" not in pattern:
        return [Path(os.path.normpath(parent.parent / pattern))]
    base = parent.parent if deep else working_directory
    return [Path(each) for each in sorted(glob.glob(str(base / pattern)))]  # noqa: PTH207 - Go's rules: no `**`


def _document(path: Path) -> Table:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise Unreadable(f"{path} can't be read: {(error.strerror or str(error)).lower()}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(f"{path} is not TOML: {type(error).__name__}") from error
    except tomllib.TOMLDecodeError as error:
        raise Unreadable(f"{path} is not TOML: {' '.join(str(error).split())}") from error


def _version(document: Table) -> int:
    value = document.get("version")
    return value if isinstance(value, int) else 1


def _texts(value: object) -> list[str]:
    return [each for each in cast("list[object]", value) if isinstance(each, str)] if isinstance(value, list) else []


def _as_table(value: object) -> Table:
    return cast("Table", value) if isinstance(value, dict) else {}
