"""Which directory below containerd's `config_path` is a registry's. Reads, and writes nothing.

A `config_path` may name several folders: the first one that has a directory for the registry, or a ``_default``, wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from peili.adapters.containerd.hosts_toml.marks import Marked, taken_apart
from peili.adapters.containerd.hosts_toml.meaning import DEFAULT
from peili.adapters.files.editor import CannotEdit
from peili.mirror.oci.references import is_registry, looks_like_registry

FILE = "hosts.toml"
_WITH_PORT = re.compile(r"(?P<host>.+)_(?P<port>[0-9]+)_")


def directory_names(registry: str) -> tuple[str, ...]:
    """The names that a registry's directory may have; containerd takes the first that exists."""
    host, colon, port = registry.rpartition(":")
    return (f"{host}_{port}_", registry) if colon and host and not registry.endswith("]") else (registry,)


def registry_of(name: str) -> str:
    """The registry that a directory called `name` is for."""
    match = _WITH_PORT.fullmatch(name)
    return f"{match['host']}:{match['port']}" if match else name


@dataclass(frozen=True)
class Entry:
    """A registry's directory, which need not exist."""

    directory: Path

    @property
    def file(self) -> Path:
        """Its hosts.toml."""
        return self.directory / FILE

    @property
    def registry(self) -> str:
        """The registry, or ``_default``."""
        return registry_of(self.directory.name)

    @cached_property
    def data(self) -> bytes | None:
        """What the file has; None where there is none. Raises CannotEdit, OSError."""
        try:
            return self.file.read_bytes()
        except FileNotFoundError:
            if self.file.is_symlink():
                raise CannotEdit("a symbolic link that leads nowhere") from None
            return None
        except NotADirectoryError:
            raise CannotEdit("its directory is a file") from None

    @cached_property
    def marked(self) -> Marked:
        """The file taken apart. Raises CannotEdit, OSError."""
        return Marked(b"") if self.data is None else taken_apart(self.data)

    @property
    def base(self) -> bytes | None:
        """What the file would have without us; None where there would be none. Raises CannotEdit, OSError."""
        return None if self.data is None or self.marked.made_whole else self.marked.base

    @cached_property
    def there(self) -> bool:
        """Whether the directory would be there without us. Raises OSError."""
        if not self.directory.exists():
            return False
        try:
            made = self.marked.made_whole and self.marked.made > 1
        except CannotEdit:
            return True
        return not made or any(each.name != FILE for each in self.directory.iterdir())


@dataclass(frozen=True, slots=True)
class Found:
    """Where a registry is configured. Without an `entry` it is nowhere; an entry may be the one of ``_default``.

    `ours` is a directory for it that is there only because of us. `root` is where to make one.
    """

    root: Path
    entry: Entry | None = None
    ours: Entry | None = None


def find(roots: Sequence[Path], registry: str) -> Found:
    """What containerd would find for `registry`, or ``_default``, if we had made no directory. Raises OSError."""
    ours: Entry | None = None
    for root in roots:
        for name in dict.fromkeys((*directory_names(registry), DEFAULT)):
            entry = Entry(root / name)
            if entry.there:
                return Found(root, entry, ours)
            if name != DEFAULT or registry == DEFAULT:
                ours = ours or (entry if entry.directory.exists() else None)
    return Found(_where_new(roots, registry), None, ours)


def _where_new(roots: Sequence[Path], registry: str) -> Path:
    """A ``_default`` hides every folder after its own."""
    there = [root for root in roots if root.is_dir()] or roots[:1]
    return there[-1] if registry == DEFAULT else there[0]


def entries(root: Path) -> Iterator[Entry]:
    """Every registry's directory in `root`, ``_default`` last. Raises OSError.

    A directory whose name can't be a registry's is none: containerd never looks there.
    """
    return (each for each in directories(root) if each.registry == DEFAULT or is_registry(each.registry))


def directories(root: Path) -> Iterator[Entry]:
    """Every directory in `root`, ``_default`` last, whatever its name. Raises OSError."""
    if root.is_dir():
        names = sorted(each.name for each in root.iterdir() if not each.name.startswith(".") and each.is_dir())
        yield from (Entry(root / name) for name in sorted(names, key=lambda name: name == DEFAULT))


def strays(root: Path) -> list[Path]:
    """Files in `root` where a registry's directory would be: containerd can pull nothing from there. Raises OSError."""
    there = sorted(each for each in root.iterdir() if each.exists() and not each.is_dir()) if root.is_dir() else []
    return [each for each in there if each.name == DEFAULT or _is_meant(each.name)]


def _is_meant(name: str) -> bool:
    return name != FILE and looks_like_registry(registry_of(name))


def configured(roots: Sequence[Path]) -> list[str]:
    """The registries that have a directory of their own in force. Raises OSError."""
    found: dict[str, None] = {}
    for root in roots:
        found.update(dict.fromkeys(each.registry for each in entries(root) if each.directory.name != DEFAULT))
        if Entry(root / DEFAULT).there:
            break
    return list(found)
