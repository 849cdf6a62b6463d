"""containerd's configuration as it is in force: its files, what they import, and how containerd puts them together.

By docs/man/containerd-config.toml.5 and docs/PLUGINS.md, and by what containerd makes of them: generations.py. What of
it matters to a mirror is said in registries.py.
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

from peili.adapters.containerd.doctor.generations import (
    CRI_1,
    CRI_2,
    IMAGES_3,
    RUNTIME_3,
    Generation,
    Table,
    renamed,
    up_to_date,
)
from peili.adapters.containerd.version import ContainerdVersion
from peili.mirror import PeiliError

DEFAULT_FILE = Path("/etc/containerd/config.toml")


class Unreadable(PeiliError):
    """containerd would not start with these files; the message says which one is the reason and why, in one line.

    `mend` says what to do.
    """

    def __init__(self, reason: str, mend: str = "") -> None:
        super().__init__(reason)
        self.mend = mend or "run as root, or give --containerd-config FILE; in a container mount it at the same path"


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the files say together.

    Attributes:
        files: those that were read, in containerd's order: later ones win.
        plugins: the table of each plug-in, by the name under which containerd looks for it.
        origin: which file each plug-in's table is from, or was last changed by.
        hidden: tables that a later file has replaced altogether, as 1.x does: plug-in, file, and by which file.
        unread: tables of the CRI plug-in that containerd does not read, since its name is another in a file of that
            version: the name as written, the table, and the file.
        moved: the CRI plug-in's earlier name as written, where what stands under it was moved to its present one.
        dead: imports that match no file.
        disabled: the parts of the CRI plug-in that are switched off; without any of them it does nothing.
        proxies: the address of each proxy plug-in.
        version: that of the files; where they differ, that of the last one that says any.
        first: that of the first file; 0 where it says none.
    """

    files: tuple[Path, ...] = ()
    plugins: Mapping[str, Table] = field(default_factory=dict[str, Table])
    origin: Mapping[str, Path] = field(default_factory=dict[str, Path])
    hidden: tuple[tuple[str, Path, Path], ...] = ()
    unread: tuple[tuple[str, Table, Path], ...] = ()
    moved: str | None = None
    dead: tuple[str, ...] = ()
    disabled: tuple[str, ...] = ()
    proxies: Mapping[str, str] = field(default_factory=dict[str, str])
    version: int = 1
    first: int = 0

    def table(self, plugin: str, *path: str) -> Table:
        """The table at `path` below a plug-in's; empty where there is none."""
        table: Any = self.plugins.get(plugin, {})
        for name in path:
            table = as_table(table).get(name, {})
        return as_table(table)


def read(path: Path, version: ContainerdVersion | None, working_directory: Path = Path("/")) -> Configuration:
    """What a containerd of that `version` that was started with `path` reads. Where it is not known, the file's own
    version tells: 3 is new in 2.0, and 4 in 2.3. Raises Unreadable, where containerd would not start, either.
    """
    first = path.absolute()
    waiting = deque([(first, _document(first))])
    merged = _Merged(version or _guessed(_version(waiting[0][1])), known=version is not None)
    while waiting:
        file, document = waiting.popleft()
        merged.add(file, document)
        for pattern in _texts(document.get("imports")):
            base = file.parent if merged.generation.from_parent else working_directory
            found = _imported(file, pattern, base)
            if not found:
                merged.dead.append(pattern)
            known = {*merged.files, *(each for each, _ in waiting)}
            waiting.extend((each, _document(each)) for each in dict.fromkeys(found) if each not in known)
    return merged.done(first)


class _Merged:
    """The files so far, as containerd `version` merges them."""

    def __init__(self, version: ContainerdVersion, *, known: bool) -> None:
        self.files: list[Path] = []
        self.dead: list[str] = []
        self.generation = Generation.of(version)
        self._named = f"containerd {version.major}.{version.minor}" if known else "containerd"
        self._newest = self.generation.newest if known else None
        self._version = (self._newest or 3) if self.generation.deep else 1
        self._disabled: list[str] = []
        self._proxies: dict[str, str] = {}
        self._plugins: dict[str, Table] = {}
        self._written: dict[str, tuple[str, Path]] = {}
        self._origin: dict[str, Path] = {}
        self._hidden: list[tuple[str, Path, Path]] = []
        self._unread: list[tuple[str, Table, Path]] = []
        self._moved: str | None = None
        self._first = 0

    def add(self, file: Path, document: Table) -> None:
        """The next file."""
        self.files.append(file)
        plugins = {name: as_table(table) for name, table in as_table(document.get("plugins")).items()}
        disabled, number = _texts(document.get("disabled_plugins")), _version(document)
        self._written.update({renamed(name): (name, file) for name in plugins if renamed(name) == CRI_2})
        if self.generation.deep and number < 2:
            self._check(file)  # it would be brought up to the version so far
            plugins = {renamed(name): table for name, table in plugins.items()}
            disabled = [renamed(name) for name in disabled]
        if self.generation.each:
            plugins = self._brought(plugins, max(number, 1), file)
        if not self.files[1:]:
            self._first = number
        if number >= 2 or not self.generation.deep:  # 2.x takes one without a version for one of its own time
            self._version = number or self._version
        self._disabled += disabled
        for name, table in as_table(document.get("proxy_plugins")).items():
            self._proxies[name] = str(as_table(table).get("address", ""))
        for name, table in plugins.items():
            self._merge(name, table, file)

    def done(self, first: Path) -> Configuration:
        """What they say together. Raises Unreadable."""
        self._check(first)
        plugins = self._plugins
        if self.generation.deep and not self.generation.each:
            plugins = self._brought(plugins, self._version, first)
        return Configuration(
            files=tuple(self.files),
            plugins=plugins,
            origin=self._origin,
            hidden=tuple(self._hidden),
            unread=(*self._unread, *self._misnamed()),
            moved=self._moved,
            dead=tuple(self.dead),
            disabled=tuple(sorted({*self._disabled} & self._parts)),
            proxies=self._proxies,
            version=self._version,
            first=self._first,
        )

    @property
    def _parts(self) -> set[str]:
        """What has to be on for the CRI plug-in to work, by the names that this version has for them."""
        if self.generation.deep:
            return {CRI_2, IMAGES_3, RUNTIME_3}
        return {CRI_1} if self._version == 1 else {CRI_2}

    def _merge(self, name: str, table: Table, file: Path) -> None:
        before = self._plugins.get(name)
        if before is not None and not self.generation.deep:
            self._hidden.append((name, self._origin[name], file))
        self._plugins[name] = _merge(before, table) if before and self.generation.deep else table
        self._origin[name] = file

    def _brought(self, plugins: dict[str, Table], version: int, file: Path) -> dict[str, Table]:
        """`plugins` of that version, brought up to date; what is not moved is noted as unread."""
        if CRI_2 not in plugins:
            return plugins
        name, file = self._written.get(CRI_2, (CRI_2, file))
        if version < (self.generation.newest or 0):
            self._moved = name
            return dict(up_to_date(plugins, fills=self.generation.fills))
        self._unread.append((name, plugins[CRI_2], file))
        return plugins

    def _misnamed(self) -> list[tuple[str, Table, Path]]:
        """Tables under a name that the CRI plug-in never had in this version of a file, or of containerd."""
        wrong = [CRI_1] if self.generation.deep else [IMAGES_3, *([CRI_2] if self._version == 1 else [])]
        return [(name, self._plugins[name], self._origin[name]) for name in wrong if name in self._plugins]

    def _check(self, first: Path) -> None:
        """That containerd starts with these. Raises Unreadable."""
        if self._newest is not None and self._version > self._newest:
            reason = f"version = {self._version} in {first}, and {self._named} starts with {self._newest} at most"
            raise Unreadable(reason, f"write the file for version {self._newest}, {_RESTART}")
        for name in self._disabled if self._version > 1 else ():
            if not (name.startswith("io.containerd.") or (self.generation.deep and "." in name)):
                reason = f"disabled_plugins of {first} names {name!r}, and {self._named} does not start with that"
                raise Unreadable(reason, f"write the plug-in's name in full, as {CRI_2}, {_RESTART}")
        for name in self._plugins if self._version > 1 and not self.generation.deep else ():
            if not name.startswith("io.containerd."):
                reason = f"[plugins.{name}] in {self._origin[name]}, and {self._named} does not start with that"
                raise Unreadable(reason, f"write the plug-in's name in full, as {CRI_2}, {_RESTART}")


_RESTART = "then restart containerd"


def _guessed(number: int) -> ContainerdVersion:
    return {3: ContainerdVersion(2, 0), 4: ContainerdVersion(2, 3)}.get(number, ContainerdVersion())


def _merge(before: Table, after: Table) -> Table:
    merged = dict(before)
    for key, value in after.items():
        old = merged.get(key)
        merged[key] = _merge(cast("Table", old), cast("Table", value)) if _both_tables(old, value) else value
    return merged


def _both_tables(one: object, other: object) -> bool:
    return isinstance(one, dict) and isinstance(other, dict)


def _imported(parent: Path, pattern: str, base: Path) -> list[Path]:
    """The files that an import names. A name without ``*`` is relative to the file in each version."""
    if "*" not in pattern:
        return [Path(os.path.normpath(parent.parent / pattern))]
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
    """The file's; 0 where it has none."""
    value = document.get("version")
    return value if isinstance(value, int) else 0


def _texts(value: object) -> list[str]:
    return [each for each in cast("list[object]", value) if isinstance(each, str)] if isinstance(value, list) else []


def as_table(value: object) -> Table:
    """`value`, if it is a table; else an empty one."""
    return cast("Table", value) if isinstance(value, dict) else {}
