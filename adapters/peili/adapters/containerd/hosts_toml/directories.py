"""The directory of a registry below `config_path`, and its hosts.toml with and without peili's section.

A `config_path` may name several directories: containerd uses the first one that has a directory for the registry, or a
``_default`` for all other registries. With peili's section, the file ``docker.io/hosts.toml`` may be::

    server = "https://registry-1.docker.io"

    # >>> peili hosts >>> added by "peili hosts apply", removed by "peili hosts remove"
    [host."http://127.0.0.1:5050"]
    capabilities = ["pull"]
    # <<< peili hosts <<<

containerd tries each ``host`` in order, and then the ``server``. The section stands between its two comment lines. The
rest of the file is kept byte for byte, so that `split_section` returns exactly what was there before `insert_section`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from peili.adapters.containerd.hosts_toml.model import DEFAULT
from peili.adapters.files import atomic
from peili.adapters.files.editor import Ambiguous, CannotEdit
from peili.mirror import is_registry, looks_like_registry

HOSTS_TOML = "hosts.toml"
_WITH_PORT = re.compile(r"(?P<host>.+)_(?P<port>[0-9]+)_")
_BEGIN = re.compile(rb"(?:^|(?<=\A\xef\xbb\xbf))[ \t]*# >>> peili hosts(?: \(made=(\d{1,2})\))?[^\r\n]*", re.MULTILINE)
_END = re.compile(rb"^[ \t]*# <<< peili hosts[^\r\n]*", re.MULTILINE)
_HINT = 'added by "peili hosts apply", removed by "peili hosts remove"'


@dataclass(frozen=True, slots=True)
class HostsContent:
    """The content of a hosts.toml, split into peili's section and the rest.

    Attributes:
        rest: Everything outside the section, byte for byte.
        has_section: Whether there is a section.
        created_levels: How much of the file's path peili created, as in `Edit.created_levels`; 0 is nothing. The
            comment line calls it ``made``.
    """

    rest: bytes
    has_section: bool = False
    created_levels: int = 0

    @property
    def is_created_by_peili(self) -> bool:
        """Whether the file exists only because of peili. Blank lines that an editor left do not count."""
        return self.created_levels > 0 and not self.rest.strip()


def split_section(data: bytes) -> HostsContent:
    """Split a file's content; the inverse of `insert_section`, also after edits in or around the section.

    Raises CannotEdit if the comment lines around the section are damaged.
    """
    begins, ends = list(_BEGIN.finditer(data)), list(_END.finditer(data))
    if not begins and not ends:
        return HostsContent(data)
    if len(begins) != 1 or len(ends) != 1 or begins[0].start() > ends[0].start():
        raise CannotEdit("the comment lines around peili's section are damaged; remove the section and these lines")
    start, end = begins[0].start(), ends[0].end()
    line_end = re.compile(rb"\r?\n").match(data, end)
    if line_end:
        end = line_end.end()
    elif before := re.search(rb"\r?\n\Z", data[:start]):
        start = before.start()  # the last line of the file had no end, so the section brought one
    return HostsContent(data[:start] + data[end:], has_section=True, created_levels=int(begins[0][1] or 0))


def insert_section(rest: bytes, offset: int, text: str, *, created_levels: int, newline: str) -> bytes:
    """Insert `text` as peili's section.

    Args:
        rest: The content without a section.
        offset: Where to insert: the beginning of a line, or the end of `rest`.
        text: The lines of the section.
        created_levels: How much of the file's path peili created.
        newline: The line end that the file uses.
    """
    begin = f"# >>> peili hosts (made={created_levels}) >>> " if created_levels else "# >>> peili hosts >>> "
    section = newline.join([begin + _HINT, *text.splitlines(), "# <<< peili hosts <<<"]).encode()
    line_end = newline.encode()
    if offset == len(rest) and rest and not rest.endswith(b"\n"):
        return rest + line_end + section
    return rest[:offset] + section + line_end + rest[offset:]


def directory_names(registry: str) -> tuple[str, ...]:
    """Return the possible names of a registry's directory; containerd uses the first that exists."""
    host, colon, port = registry.rpartition(":")
    return (f"{host}_{port}_", registry) if colon and host and not registry.endswith("]") else (registry,)


def registry_of(name: str) -> str:
    """Return the registry that a directory with this name configures."""
    match = _WITH_PORT.fullmatch(name)
    return f"{match['host']}:{match['port']}" if match else name


@dataclass(frozen=True)
class RegistryDirectory:
    """A registry's directory, which need not exist. What was read once is kept.

    Attributes:
        path: Its path.
    """

    path: Path

    @property
    def file(self) -> Path:
        """The path of its hosts.toml."""
        return self.path / HOSTS_TOML

    @property
    def registry(self) -> str:
        """The registry, or ``_default``."""
        return registry_of(self.path.name)

    @cached_property
    def data(self) -> bytes | None:
        """The content of hosts.toml; None if there is no file. Raises CannotEdit, OSError."""
        try:
            return atomic.read(self.file)
        except FileNotFoundError:
            if self.file.is_symlink():
                raise CannotEdit("it is a symbolic link to a file that does not exist") from None
            return None
        except NotADirectoryError:
            raise CannotEdit("its directory is a file") from None
        except atomic.UnusualFile as error:
            raise Ambiguous(f"it is {error.strerror}") from error

    @cached_property
    def content(self) -> HostsContent:
        """The content of hosts.toml, split. Raises CannotEdit, OSError."""
        return HostsContent(b"") if self.data is None else split_section(self.data)

    @property
    def original(self) -> bytes | None:
        """The content without peili's section; None if there would be no file. Raises CannotEdit, OSError."""
        return None if self.data is None or self.content.is_created_by_peili else self.content.rest

    @property
    def is_something_else(self) -> bool:
        """Whether it has directories and no hosts.toml, as no registry's directory has."""
        try:
            found = [*self.path.iterdir()]
            return any(each.is_dir() for each in found) and all(each.name != HOSTS_TOML for each in found)
        except OSError:
            return False  # the code that reads the directory reports that

    @cached_property
    def exists_without_peili(self) -> bool:
        """Whether the directory would exist if peili had created nothing. Raises OSError."""
        if not self.path.exists():
            return False
        try:
            is_created = self.content.is_created_by_peili and self.content.created_levels > 1
        except CannotEdit:
            return True
        return not is_created or any(each.name != HOSTS_TOML for each in self.path.iterdir())


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Where a registry is configured.

    Attributes:
        root: The directory of `config_path` in which a new directory for the registry would belong.
        directory: The directory that containerd would use if peili had created none. It may be that of ``_default``;
            None if there is none.
        created_by_peili: A directory for the registry that exists only because of peili.
    """

    root: Path
    directory: RegistryDirectory | None = None
    created_by_peili: RegistryDirectory | None = None


def find_directory(roots: Sequence[Path], registry: str) -> SearchResult:
    """Find the directory of `registry`, or of ``_default``, as if peili had created none. Raises OSError."""
    created: RegistryDirectory | None = None
    for root in roots:
        for name in dict.fromkeys((*directory_names(registry), DEFAULT)):
            directory = RegistryDirectory(root / name)
            if directory.exists_without_peili:
                return SearchResult(root, directory, created)
            if name != DEFAULT or registry == DEFAULT:
                created = created or (directory if directory.path.exists() else None)
    existing = [root for root in roots if root.is_dir()] or roots[:1]
    root = existing[-1] if registry == DEFAULT else existing[0]  # a _default hides all directories after its own
    return SearchResult(root, None, created)


def registry_directories(root: Path) -> Iterator[RegistryDirectory]:
    """Yield every registry's directory in `root`, ``_default`` last. Raises OSError.

    Left out are directories that containerd never uses, or that hardly anyone means as a registry: their name cannot be
    a registry's, or it has neither a dot nor a port, and they have directories and no hosts.toml, as a backup has.
    """
    return (
        each
        for each in all_directories(root)
        if each.registry == DEFAULT
        or looks_like_registry(each.registry)
        or (is_registry(each.registry) and not each.is_something_else)
    )


def all_directories(root: Path) -> Iterator[RegistryDirectory]:
    """Yield every directory in `root` whatever its name, ``_default`` last. Raises OSError."""
    if root.is_dir():
        names = sorted(each.name for each in root.iterdir() if not each.name.startswith(".") and each.is_dir())
        yield from (RegistryDirectory(root / name) for name in sorted(names, key=lambda name: name == DEFAULT))


def misplaced_files(root: Path) -> list[Path]:
    """Return the files in `root` that are named like a registry's directory. Raises OSError.

    containerd can pull nothing from such a registry.
    """
    files = sorted(each for each in root.iterdir() if each.exists() and not each.is_dir()) if root.is_dir() else []
    # A file whose name has neither a dot nor a port is hardly meant as a registry.
    return [
        each
        for each in files
        if each.name == DEFAULT or (each.name != HOSTS_TOML and looks_like_registry(registry_of(each.name)))
    ]


def configured_registries(roots: Sequence[Path]) -> list[str]:
    """Return the registries that have a directory of their own in force. Raises OSError."""
    found: dict[str, None] = {}
    for root in roots:
        found.update(dict.fromkeys(each.registry for each in registry_directories(root) if each.path.name != DEFAULT))
        if RegistryDirectory(root / DEFAULT).exists_without_peili:
            break
    return list(found)
