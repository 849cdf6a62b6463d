"""`RegistriesFile` edits a registries.yaml on disk, and shows what it means and whether k3s has read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from typing_extensions import override

from peili.adapters.files import atomic
from peili.adapters.files.config_path import is_generated
from peili.adapters.files.editor import CannotEdit, ConfigEditor, Edit
from peili.adapters.files.urls import check_mirror_url, same_door
from peili.adapters.files.yaml_text import NotYaml, is_table, parse_one
from peili.adapters.k3s.registries import (
    WILDCARD,
    WILDCARD_DIRECTORY,
    RegistryEntry,
    chosen_registries,
    endpoints_of,
    hosts_with_settings,
    read_entries,
    with_mirror,
    without_mirror,
)
from peili.mirror import ConfigError, check_registries

FILES = (Path("/etc/rancher/k3s/registries.yaml"), Path("/etc/rancher/rke2/registries.yaml"))
"""The files that k3s and RKE2 read, unless their option `--private-registry` names another one."""

HEADER = "# Made by peili, which deletes this file when nothing else is left in it.\n"
"""The first line of a file that peili created."""

_OTHER_FILES = ("config.yaml", "k3s.yaml", "rke2.yaml")
"""With mirrors in its config.yaml, k3s does not start. The others say how to reach the cluster."""
_NO_FALLBACK = "disable-default-registry-endpoint"


def installed_files() -> tuple[Path, ...]:
    """Return those of `FILES` whose product is installed on this host. The files themselves need not exist."""
    return tuple(file for file in FILES if file.parent.is_dir())


@dataclass(frozen=True, slots=True)
class K3sRegistryView:
    """What is in force for one registry of k3s or RKE2.

    Attributes:
        registry: Its name, or ``*`` for all registries without an entry.
        endpoints: The URLs that containerd asks, in this order. After them, it asks the registry.
        notes: Further remarks, one line each.
        mirror: The URL of peili.
    """

    registry: str
    endpoints: tuple[str, ...]
    notes: tuple[str, ...]
    mirror: str

    @property
    def is_first(self) -> bool:
        """Whether containerd asks peili first."""
        return bool(self.endpoints) and same_door(self.endpoints[0], self.mirror)

    def json(self) -> dict[str, Any]:
        """Return the same for programs, as values that `json.dumps` accepts."""
        return {
            "registry": self.registry,
            "peili_first": self.is_first,
            "endpoints": list(self.endpoints),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        names = [f"{each} (peili)" if same_door(each, self.mirror) else each for each in self.endpoints]
        lines = [f"  {number}. {each}" for number, each in enumerate([*names, "the registry itself"], 1)]
        return "\n".join([self.registry, *lines, *(f"  Note: {note}." for note in self.notes)])


class RegistriesFile(ConfigEditor[K3sRegistryView]):
    """Edits one registries.yaml, which need not exist.

    k3s reads the file only when it starts, so it must be restarted after a change. The file keeps its mode and owner.

    Args:
        mirror: The URL of the local door, as this host's containerd reaches it.
        file: The path of the file.
        registries: The registries to put peili in front of, such as ``docker.io``; ``*`` stands for all registries
            without an entry. The default is ``*`` and each registry that has an entry.

    Raises:
        ConfigError: A value is wrong, or the file is another one of k3s.
    """

    def __init__(self, mirror: str, *, file: str | Path = FILES[0], registries: Iterable[str] = ()) -> None:
        self.file = Path(file).absolute()
        self.registries = tuple(dict.fromkeys(registries))
        self.mirror = mirror
        check_mirror_url(mirror)
        check_registries(registry for registry in self.registries if registry != WILDCARD)
        if is_generated(self.file) or self.file.name in {"hosts.toml", "config.toml"}:
            raise ConfigError("file", f"a registries.yaml; k3s or RKE2 generates {self.file} from it at each start")
        if self.file.name in _OTHER_FILES or self.file.parent.name == "config.yaml.d":
            raise ConfigError("file", f"a registries.yaml; {self.file} is another file of k3s or RKE2")

    @property
    def product(self) -> str:
        """``k3s`` or ``rke2``, judged by the path of the file."""
        return "rke2" if "rke2" in self.file.parts else "k3s"

    @override
    def show(self, *, data_dir: Path | None = None) -> list[K3sRegistryView]:
        """Return what is in force for each registry in the file.

        Args:
            data_dir: k3s's data directory, by default the usual one. What k3s has generated there shows whether it has
                read the file.

        Raises:
            CannotEdit: The text cannot be understood.
            OSError: The file cannot be read.
        """
        text = _decode(_read(self.file) or b"")
        entries = read_entries(text)
        generated = (data_dir or Path("/var/lib/rancher") / self.product) / "agent/etc/containerd/certs.d"
        views = [
            K3sRegistryView(each.registry, each.endpoints, (*_notes(each, self.mirror, generated),), self.mirror)
            for each in entries
        ]
        # k3s writes a hosts.toml for each host under `configs`, so `*` does not apply to it.
        note = "* does not apply to it, because it has an entry under configs; to put peili in front, use --registry"
        covered = {each.registry for each in entries} | {
            endpoint.split("://", 1)[-1].split("/", 1)[0] for each in entries for endpoint in each.endpoints
        }
        others = [host for host in hosts_with_settings(text) if host not in covered | {WILDCARD}]
        return [*views, *(K3sRegistryView(host, (), (note,), self.mirror) for host in others)]

    @override
    def _locked_paths(self) -> tuple[Path, ...]:
        return (self.file, atomic.resolve_links(self.file))  # if it is a link, its target is changed

    @override
    def _edits_to_apply(self) -> Iterator[Callable[[], Edit]]:
        yield partial(self._edit, self._add_mirror)

    @override
    def _edits_to_remove(self) -> Iterator[Callable[[], Edit]]:
        yield partial(self._edit, self._remove_mirror)

    def _edit(self, change: Callable[[bytes | None], bytes | None]) -> Edit:
        try:
            before = _read(self.file)
            return Edit(self.file, before, change(before))
        except CannotEdit as error:
            raise CannotEdit(str(error), self.file) from error

    def _add_mirror(self, before: bytes | None) -> bytes:
        if "[" in self.mirror:
            raise CannotEdit(
                "k3s copies the mirror's URL into hosts.toml, and containerd 1.x can't read an IPv6 address there; "
                "use a host name, such as http://localhost:5050"
            )
        header, text = (HEADER, "") if before is None else _split_header(before)
        base = without_mirror(text)
        registries = chosen_registries(text, self.registries)
        setting = _file_without_fallback(self.file.parent)
        if setting is not None:
            alone = [each for each in registries if not endpoints_of(base, each)]
            if alone:
                raise CannotEdit(
                    f"{setting} has {_NO_FALLBACK}, so peili would be the only endpoint of {', '.join(alone)}; "
                    "add the registry's own URL to its endpoints, or choose other registries with --registry"
                )
        return (header + with_mirror(text, self.mirror, registries)).encode()

    def _remove_mirror(self, before: bytes | None) -> bytes | None:
        if before is None:
            return None
        header, text = _split_header(before)
        after = without_mirror(text, self.registries)
        if header and after != without_mirror(after):  # peili stays in front of other registries
            return (header + after).encode()
        return None if header and not after.strip() else after.encode()


def _notes(entry: RegistryEntry, mirror: str, generated: Path) -> list[str]:
    notes: list[str] = []
    if any(same_door(each, mirror) for each in entry.endpoints):
        if entry.rewrites:
            notes.append(
                "k3s rewrites names for every endpoint, also for peili: content is found anyway, by its digest, but "
                "tags and peili's `exclude` see the rewritten name"
            )
        if generated.is_dir() and not _is_in_force(entry.registry, mirror, generated):
            notes.append("not in force yet: k3s and RKE2 read the file when they start")
    return notes


def _is_in_force(registry: str, mirror: str, generated: Path) -> bool:
    """Return whether the hosts.toml that k3s generated at its last start names peili."""
    host, _, port = registry.rpartition(":")
    names = (WILDCARD_DIRECTORY,) if registry == WILDCARD else (registry, f"{host}_{port}_")
    for name in names:
        try:
            return f'"{mirror}' in atomic.read(generated / name / "hosts.toml").decode()
        except (OSError, UnicodeDecodeError):
            continue
    return False


def _file_without_fallback(directory: Path) -> Path | None:
    """Return the configuration file of k3s that switches off the fallback to the registry; None if there is none.

    containerd then asks only the endpoints of a registry that has an entry. The same option on k3s's command line is
    not detected.
    """
    for file in (directory / "config.yaml", *sorted((directory / "config.yaml.d").glob("*.yaml"))):
        try:
            settings: Any = parse_one(atomic.read(file).decode())
        except (NotYaml, OSError, UnicodeDecodeError):
            continue  # k3s does not start with such a file
        if is_table(settings) and settings.get(_NO_FALLBACK) in (True, "true"):
            return file
    return None


def _split_header(data: bytes) -> tuple[str, str]:
    """Return `HEADER`, or an empty string if peili did not create the file, and the rest of the text."""
    text = _decode(data)
    return (HEADER, text.removeprefix(HEADER)) if text.startswith(HEADER) else ("", text)


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CannotEdit("it is not UTF-8") from error


def _read(file: Path) -> bytes | None:
    try:
        return atomic.read(file)
    except FileNotFoundError:
        if file.is_symlink():
            raise CannotEdit("a symbolic link that leads nowhere") from None
        return None
    except atomic.UnusualFile as error:
        raise CannotEdit(f"{error.strerror}") from error
