"""Says what is in force for each registry, and what containerd will do with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peili.adapters.containerd.hosts_toml.certificates import docker_style, unusable
from peili.adapters.containerd.hosts_toml.meaning import DEFAULT, Host, Version
from peili.adapters.containerd.hosts_toml.places import FILE, Entry, directory_names, entries, registry_of, strays
from peili.adapters.containerd.hosts_toml.reading import Reading, by_certificates, read
from peili.adapters.files.editor import Ambiguous, CannotEdit

_DOCKER_HUB = "https://registry-1.docker.io"
NOTHING = "containerd can pull nothing from here"


@dataclass(frozen=True, slots=True)
class Shown:
    """What containerd does for one registry (``_default``: for each without a directory of its own).

    Attributes:
        registry, directory: whose, and where that stands.
        hosts: whom it asks, first one first.
        notes: what else there is to know, each one line.
        mirror: peili's URL.
        fails: whether containerd asks nobody, because it can't use a file; a note says which.
        unsure: whether peili can't tell what containerd makes of it; a note says why.
    """

    registry: str
    directory: Path
    hosts: tuple[Host, ...]
    notes: tuple[str, ...]
    mirror: str
    fails: bool = False
    unsure: bool = False

    @property
    def is_first(self) -> bool:
        """Whether peili is asked first."""
        return bool(self.hosts) and self.hosts[0].leads_to(self.mirror)

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "registry": self.registry,
            "directory": str(self.directory),
            "peili_first": self.is_first,
            "hosts": [
                {"url": self._url(host), "capabilities": list(host.capabilities), "settings": list(host.settings)}
                for host in self.hosts
            ],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [f"{self.registry}  ({self.directory})"]
        for number, host in enumerate(self.hosts, 1):
            also = f"; with {', '.join(host.settings)}" if host.settings else ""
            lines.append(f"  {number}. {self._named(host)}: {', '.join(host.capabilities)}{also}")
        if self.hosts and not self.fails:
            lines.append(
                f"  containerd asks {self._asked('pull', 'resolve')} what a tag means, and {self._asked('pull')}"
            )
            lines[-1] += " for content; each is asked only if those before it fail."
        return "\n".join([*lines, *(f"  Note: {note}." for note in self.notes)])

    def _asked(self, *capabilities: str) -> str:
        numbers = [str(n) for n, host in enumerate(self.hosts, 1) if host.may(*capabilities)]
        return ", then ".join(numbers) or "nobody"

    def _named(self, host: Host) -> str:
        name = self._url(host) or "the registry itself"
        return f"{name} (peili)" if host.leads_to(self.mirror) else name

    def _url(self, host: Host) -> str | None:
        """Where a registry itself is, containerd works out from its name (and, for a local one, its port)."""
        return _DOCKER_HUB if host.url is None and self.registry == "docker.io" else host.url


def shown(roots: Sequence[Path], mirror: str, version: Version) -> list[Shown]:
    """Every directory in `roots`, with what hides it where something does. Raises OSError."""
    found: list[Shown] = []
    hidden_by: dict[str, Path] = {}
    everything: Path | None = None
    for root in roots:
        for entry in entries(root):
            first = hidden_by.setdefault(entry.registry, everything or _best_named(entry))
            found.append(_shown(entry, mirror, version, None if first == entry.directory else first))
        if everything is None:
            found += [_stray(path, mirror) for path in strays(root)]
        everything = everything or next((path for path in [root / DEFAULT] if path.exists()), None)
    return found


def _best_named(entry: Entry) -> Path:
    """The directory that containerd looks at: a port can be written in two ways."""
    first = entry.directory.with_name(directory_names(entry.registry)[0])
    return first if first.exists() else entry.directory


def _stray(path: Path, mirror: str) -> Shown:
    note = f"{NOTHING}: a directory belongs here, and this is a file"
    return Shown(registry_of(path.name), path, (), (note,), mirror, fails=True)


def _shown(entry: Entry, mirror: str, version: Version, hidden_by: Path | None) -> Shown:
    if hidden_by is not None:
        return Shown(entry.registry, entry.directory, (), (f"containerd never looks here, but at {hidden_by}",), mirror)
    try:
        found = read(entry.data, entry.directory, version)
        broken = unusable(found.hosts)
    except Ambiguous as error:
        return _unclear(entry, mirror, f"peili can't tell what containerd makes of hosts.toml: {error}")
    except CannotEdit as error:  # a link that leads nowhere: containerd takes it for no file
        return _shown_by_certificates(entry, mirror, str(error))
    except OSError as error:
        note = f"{NOTHING}: {FILE} can't be read: {error.strerror}"
        return Shown(entry.registry, entry.directory, (), (note,), mirror, fails=True)
    notes = [*_notes(entry, found), *([f"{NOTHING}: {broken}"] if broken else [])]
    return Shown(entry.registry, entry.directory, found.hosts, tuple(notes), mirror, fails=bool(broken))


def _shown_by_certificates(entry: Entry, mirror: str, why: str) -> Shown:
    try:
        hosts = by_certificates(entry.directory)
        broken = unusable(hosts)
    except (CannotEdit, OSError) as error:
        return _unclear(entry, mirror, f"peili can't tell what containerd makes of {entry.directory}: {error}")
    notes = [f"hosts.toml is {why}, as if it were not there", *([f"{NOTHING}: {broken}"] if broken else [])]
    return Shown(entry.registry, entry.directory, hosts, tuple(notes), mirror, fails=bool(broken))


def _unclear(entry: Entry, mirror: str, note: str) -> Shown:
    return Shown(entry.registry, entry.directory, (), (note,), mirror, unsure=True)


def _notes(entry: Entry, found: Reading) -> list[str]:
    if entry.data is None:
        return []
    if not entry.data:
        return ["hosts.toml is empty, as if it were not there"]
    if found.unread:
        return [found.unread if found.no_host else f"containerd reads nothing of hosts.toml: {found.unread}"]
    notes: list[str] = []
    if found.overlooked:
        notes.append(f"containerd 2.x overlooks hosts without a table header: {', '.join(found.overlooked)}")
    if not {"ca", "client"} & found.hosts[-1].values.keys() and docker_style(entry.directory):
        notes.append("the certificates in the directory are not used, because hosts.toml does not name them")
    return notes
