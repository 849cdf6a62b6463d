"""containerd's configuration as containerd understands it: its files and their imports, merged and migrated.

The rules are those of docs/man/containerd-config.toml.5 and docs/PLUGINS.md, and of what versions 1.6 to 2.4 do; tests
compare each rule with these versions. `registry_settings` says what the configuration means for a mirror.
"""

from __future__ import annotations

import codecs
import glob
import os
import tomllib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from peili.adapters.containerd.doctor.result import as_root
from peili.adapters.containerd.doctor.value_types import wrong_setting, wrong_value
from peili.adapters.containerd.version import ContainerdVersion
from peili.adapters.files import atomic
from peili.mirror import PeiliError

Table = Mapping[str, Any]

DEFAULT_FILE = Path("/etc/containerd/config.toml")

CRI_1 = "cri"
CRI_2 = "io.containerd.grpc.v1.cri"
IMAGES_3 = "io.containerd.cri.v1.images"
RUNTIME_3 = "io.containerd.cri.v1.runtime"
"""The CRI plug-in's names in files of version 1, in those of version 2, and since version 3, which splits it."""

CONTAINERD_DIRECTORY, DOCKER_DIRECTORY = "/etc/containerd/certs.d", "/etc/docker/certs.d"
DEFAULT_CONFIG_PATH = f"{CONTAINERD_DIRECTORY}:{DOCKER_DIRECTORY}"
"""The `config_path` of containerd 2.2 and later."""

_MIGRATED = ("registry", "max_concurrent_downloads", "image_pull_with_sync_fs")
_MIGRATED_WITH_RUNTIMES = ("snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers")
_LIKELY_VERSIONS = {3: ContainerdVersion(2, 0), 4: ContainerdVersion(2, 3)}
_RESTART = "then restart containerd"
_LONGEST = 16 << 20
"""Bytes of a file."""


class InvalidConfiguration(PeiliError):
    """containerd would not start with these files. The message names the file and says why, in one line.

    Attributes:
        fix: How to fix it.
    """

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.fix = fix or f"{as_root()}give --containerd-config FILE; in a container, mount it at the same path"


@dataclass(frozen=True, slots=True)
class MergeRules:
    """How one version of containerd merges its configuration files.

    Attributes:
        newest_format: The newest version of a file with which it starts; None if it does not check.
        merges_tables: Whether the tables of later files are merged into those of earlier files; otherwise they replace
            a plug-in's table.
        migrates_each_file: Whether each file is migrated from its own version before it is merged; otherwise all files
            are migrated together, from the version of the last file that names one.
        imports_relative_to_file: Whether a relative pattern in `imports` is resolved against the file's directory;
            otherwise against the directory in which containerd was started.
        fills_config_path: Whether migration replaces an empty `config_path` by the default.
    """

    newest_format: int | None
    merges_tables: bool
    migrates_each_file: bool
    imports_relative_to_file: bool
    fills_config_path: bool = False

    @classmethod
    def of(cls, version: ContainerdVersion) -> MergeRules:
        """Return the rules of this version."""
        number = (version.major, version.minor)
        if number >= (2, 3):
            return cls(newest_format=4, merges_tables=True, migrates_each_file=True, imports_relative_to_file=True)
        if number >= (2, 0):
            return cls(
                newest_format=3,
                merges_tables=True,
                migrates_each_file=False,
                imports_relative_to_file=True,
                fills_config_path=number == (2, 2),
            )
        is_1_7 = number >= (1, 7)
        return cls(
            newest_format=2 if is_1_7 else None,
            merges_tables=False,
            migrates_each_file=False,
            imports_relative_to_file=is_1_7,
        )


@dataclass(frozen=True, slots=True)
class Configuration:
    """The configuration that results from all files.

    Attributes:
        files: The files, in containerd's order: later ones win.
        plugins: The table of each plug-in, by the name that containerd uses.
        replaced: Tables that an imported file replaces as a whole, as in 1.x: the plug-in, its file, the other file.
        ignored: Tables of the CRI plug-in that containerd ignores, because in a file of that version the plug-in has
            another name: the name as written, the table, the file.
        migrated_name: The earlier name of the CRI plug-in, as written, if its settings were migrated to the present
            one.
        unmatched_imports: Imports that match no file.
        disabled: The parts of the CRI plug-in that are switched off. It does nothing without any one of them.
        proxies: The address of each proxy plug-in.
        format: The version of the files; if they differ, that of the last file that names one.
        working_directory: The directory in which containerd was started.
    """

    files: tuple[Path, ...] = ()
    plugins: Mapping[str, Table] = field(default_factory=dict[str, Table])
    replaced: tuple[tuple[str, Path, Path], ...] = ()
    ignored: tuple[tuple[str, Table, Path], ...] = ()
    migrated_name: str | None = None
    unmatched_imports: tuple[str, ...] = ()
    disabled: tuple[str, ...] = ()
    proxies: Mapping[str, str] = field(default_factory=dict[str, str])
    format: int = 1
    working_directory: Path = Path("/")

    @property
    def has_cri(self) -> bool:
        """Whether the CRI plug-in, through which Kubernetes pulls, is on."""
        return not self.disabled

    def table(self, plugin: str, *path: str) -> Table:
        """Return the table at `path` below a plug-in's table; an empty one if there is none."""
        table: Any = self.plugins.get(plugin, {})
        for name in path:
            table = as_table(table).get(name, {})
        return as_table(table)


def read_configuration(
    path: Path, version: ContainerdVersion | None, working_directory: Path = Path("/")
) -> Configuration:
    """Read the configuration of a containerd.

    Args:
        path: The file that containerd was started with.
        version: The version of containerd. If it is None, the version of the file says which containerd is likely:
            version 3 came with 2.0, and version 4 with 2.3.
        working_directory: The directory in which containerd was started.

    Raises:
        InvalidConfiguration: A file cannot be read, or containerd would not start with the files.
    """
    first = path.absolute()
    waiting = deque([(first, _load(first))])
    likely = _LIKELY_VERSIONS.get(_format_of(waiting[0][1]), ContainerdVersion())
    merger = _Merger(version or likely, is_known=version is not None)
    while waiting:
        file, document = waiting.popleft()
        merger.add(file, document)
        for pattern in _strings(document.get("imports")):
            base = file.parent if merger.rules.imports_relative_to_file else working_directory
            found = _imported_files(file, pattern, base)
            if not found:
                merger.unmatched_imports.append(pattern)
            known = {*merger.files, *(each for each, _ in waiting)}
            waiting.extend((each, _load(each)) for each in dict.fromkeys(found) if each not in known)
    return replace(merger.result(first), working_directory=working_directory)


class _Merger:
    """Merges files one after the other, as containerd `version` does."""

    def __init__(self, version: ContainerdVersion, *, is_known: bool) -> None:
        self.files: list[Path] = []
        self.unmatched_imports: list[str] = []
        self.rules = MergeRules.of(version)
        self._name = f"containerd {version.major}.{version.minor}" if is_known else "containerd"
        self._newest = self.rules.newest_format if is_known else None
        self._format = (self._newest or 3) if self.rules.merges_tables else 1
        self._disabled: list[str] = []
        self._proxies: dict[str, str] = {}
        self._plugins: dict[str, Table] = {}
        self._names_as_written: dict[str, tuple[str, Path]] = {}
        self._origins: dict[str, Path] = {}  # the file that each plug-in's table is from, or was last changed by
        self._replaced: list[tuple[str, Path, Path]] = []
        self._ignored: list[tuple[str, Table, Path]] = []
        self._migrated_name: str | None = None

    def add(self, file: Path, document: Table) -> None:
        """Merge the next file. Raises InvalidConfiguration."""
        self.files.append(file)
        if self.rules.merges_tables and atomic.read(file, _LONGEST).startswith(codecs.BOM_UTF8):
            reason = f"{file} begins with a byte-order mark, with which containerd 2.x does not start"
            raise InvalidConfiguration(reason, f"save it without one, {_RESTART}")
        plugins = {name: as_table(table) for name, table in as_table(document.get("plugins")).items()}
        disabled, number = _strings(document.get("disabled_plugins")), _format_of(document)
        self._names_as_written.update({_renamed(name): (name, file) for name in plugins if _renamed(name) == CRI_2})
        if self.rules.merges_tables and number < 2:
            self._check(file)  # it would be migrated from the version so far
            plugins = {_renamed(name): table for name, table in plugins.items()}
            disabled = [_renamed(name) for name in disabled]
        if self.rules.migrates_each_file:
            plugins = self._migrate(plugins, max(number, 1), file)
        if number >= 2 or not self.rules.merges_tables:  # 2.x assumes its own version for a file that names none
            self._format = number or self._format
        self._disabled += disabled
        for name, table in as_table(document.get("proxy_plugins")).items():
            self._proxies[name] = str(as_table(table).get("address", ""))
        for name, table in plugins.items():
            self._merge_plugin(name, table, file)

    def result(self, first: Path) -> Configuration:
        """Return the configuration; `first` is the first file. Raises InvalidConfiguration."""
        self._check(first)
        plugins = self._plugins
        if self.rules.merges_tables and not self.rules.migrates_each_file:
            plugins = self._migrate(plugins, self._format, first)
        if self.rules.merges_tables:
            cri_parts = {CRI_2, IMAGES_3, RUNTIME_3}  # all that the CRI plug-in needs to work
        else:
            cri_parts = {CRI_1} if self._format == 1 else {CRI_2}
        for name in sorted(cri_parts):
            self._check_values(name, plugins.get(name, {}), first)
        return Configuration(
            files=tuple(self.files),
            plugins=plugins,
            replaced=tuple(self._replaced),
            ignored=(*self._ignored, *self._misnamed()),
            migrated_name=self._migrated_name,
            unmatched_imports=tuple(self.unmatched_imports),
            disabled=tuple(sorted({*self._disabled} & cri_parts)),
            proxies=self._proxies,
            format=self._format,
        )

    def _merge_plugin(self, name: str, table: Table, file: Path) -> None:
        before = self._plugins.get(name)
        if before is not None and not self.rules.merges_tables:
            self._replaced.append((name, self._origins[name], file))
        self._plugins[name] = _merge(before, table) if before and self.rules.merges_tables else table
        self._origins[name] = file

    def _migrate(self, plugins: dict[str, Table], number: int, file: Path) -> dict[str, Table]:
        """Return `plugins` migrated from file version `number`. What containerd does not migrate is recorded."""
        if CRI_2 not in plugins:
            return plugins
        name, file = self._names_as_written.get(CRI_2, (CRI_2, file))
        if number < (self.rules.newest_format or 0):
            self._migrated_name = name
            return _migrated(plugins, fills_config_path=self.rules.fills_config_path)
        self._ignored.append((name, plugins[CRI_2], file))
        return plugins

    def _misnamed(self) -> list[tuple[str, Table, Path]]:
        """Return tables with a name that the CRI plug-in never had in this version of a file or of containerd."""
        wrong = [CRI_1] if self.rules.merges_tables else [IMAGES_3, *([CRI_2] if self._format == 1 else [])]
        return [(name, self._plugins[name], self._origins[name]) for name in wrong if name in self._plugins]

    def _check_values(self, name: str, table: Table, first: Path) -> None:
        """Check that the plug-in `name` loads with the values in its table. Raises InvalidConfiguration."""
        is_old = self.rules.merges_tables and name == CRI_2  # its settings are migrated, or ignored
        if is_old or (wrong := wrong_setting(table, is_split=name == IMAGES_3)) is None:
            return
        file = self._origins.get(name) or self._origins.get(CRI_2, first)
        reason = f"{file} has a wrong {wrong}: the CRI plug-in does not load with it"
        raise InvalidConfiguration(reason, f"correct it, {_RESTART}")

    def _check(self, first: Path) -> None:
        """Check that containerd starts with the files so far. Raises InvalidConfiguration."""
        if self._newest is not None and self._format > self._newest:
            reason = f"{first} has version = {self._format}, but {self._name} accepts at most {self._newest}"
            raise InvalidConfiguration(reason, f"write the file for version {self._newest}, {_RESTART}")
        fix = f"write the plug-in's full name, such as {CRI_2}, {_RESTART}"
        for name in self._disabled if self._format > 1 else ():
            if not (name.startswith("io.containerd.") or (self.rules.merges_tables and "." in name)):
                reason = f"disabled_plugins of {first} contains {name!r}, with which {self._name} does not start"
                raise InvalidConfiguration(reason, fix)
        for name in self._plugins if self._format > 1 and not self.rules.merges_tables else ():
            if not name.startswith("io.containerd."):
                reason = f"{self._origins[name]} contains [plugins.{name}], with which {self._name} does not start"
                raise InvalidConfiguration(reason, fix)


def _renamed(name: str) -> str:
    """Return what 2.x calls a plug-in that a file of version 1 calls `name`."""
    return CRI_2 if name == CRI_1 else name


def _migrated(plugins: Table, *, fills_config_path: bool) -> dict[str, Table]:
    """Return `plugins` with the settings of the CRI plug-in of version 2 where 2.x expects them.

    Migrated settings replace those already there. Some are migrated only if there is a table of runtimes.
    """
    old = as_table(plugins.get(CRI_2))
    if not old:
        return dict(plugins)
    images = {**as_table(plugins.get(IMAGES_3)), **{key: old[key] for key in _MIGRATED if key in old}}
    if fills_config_path and as_table(images.get("registry")).get("config_path") == "":
        images["registry"] = {**as_table(images["registry"]), "config_path": DEFAULT_CONFIG_PATH}
    containerd = as_table(old.get("containerd"))
    if "runtimes" in containerd:
        images.update({key: containerd[key] for key in _MIGRATED_WITH_RUNTIMES if key in containerd})
    return {**plugins, IMAGES_3: images}


def _merge(before: Table, after: Table) -> Table:
    merged = dict(before)
    for key, value in after.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge(cast("Table", old), cast("Table", value))
        else:
            merged[key] = value
    return merged


def _imported_files(parent: Path, pattern: str, base: Path) -> list[Path]:
    """Return the files that an import names. A name without ``*`` is relative to the file in every version."""
    if "*" not in pattern:
        return [Path(os.path.normpath(parent.parent / pattern))]
    return [Path(each) for each in sorted(glob.glob(str(base / pattern)))]  # noqa: PTH207 - Go's rules: no `**`


def _load(path: Path) -> Table:
    try:
        document = tomllib.loads(atomic.read(path, _LONGEST).decode("utf-8-sig"))
    except OSError as error:
        raise InvalidConfiguration(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise InvalidConfiguration(f"{path} is not TOML: {type(error).__name__}") from error
    except ValueError as error:  # TOMLDecodeError, or a number with thousands of digits
        raise InvalidConfiguration(f"{path} is not TOML: {' '.join(str(error).split())}") from error
    if wrong := wrong_value(document):
        fix = f"correct it, {_RESTART}"
        raise InvalidConfiguration(f"{path} has a wrong {wrong}: containerd does not start with it", fix)
    return document


def _format_of(document: Table) -> int:
    """Return the version that the file names; 0 if it names none."""
    value = document.get("version")
    return value if isinstance(value, int) else 0


def _strings(value: object) -> list[str]:
    return [each for each in cast("list[object]", value) if isinstance(each, str)] if isinstance(value, list) else []


def as_table(value: object) -> Table:
    """Return `value` if it is a table, otherwise an empty one."""
    return cast("Table", value) if isinstance(value, dict) else {}
