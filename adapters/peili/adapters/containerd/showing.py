"""Says what is in force for each registry, and what containerd will do with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peili.adapters.containerd.certificates import docker_style
from peili.adapters.containerd.meaning import (
    DEFAULT,
    Host,
    Version,
    check,
    check_headers,
    hosts_of,
    ignored,
    in_force,
    order,
)
from peili.adapters.containerd.places import Entry, directory_names, entries
from peili.adapters.containerd.tomltext import parsed, text_of
from peili.adapters.leftalone import LeftAlone

_DOCKER_HUB = "https://registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class Shown:
    """What containerd does for one registry (``_default``: for each without a directory of its own).

    Attributes:
        registry, directory: whose, and where that stands.
        hosts: whom it asks, first one first.
        notes: what else there is to know, each one line.
        mirror: peili's URL.
    """

    registry: str
    directory: Path
    hosts: tuple[Host, ...]
    notes: tuple[str, ...]
    mirror: str

    @property
    def first(self) -> bool:
        """Whether peili is asked first."""
        return bool(self.hosts) and self.hosts[0].leads_to(self.mirror)

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "registry": self.registry,
            "directory": str(self.directory),
            "peili_first": self.first,
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
        if self.hosts:
            lines.append(f"  containerd asks {self._asked('resolve')} what a tag means, and {self._asked('pull')}")
            lines[-1] += " for content; each is asked only if those before it fail."
        return "\n".join([*lines, *(f"  Note: {note}." for note in self.notes)])

    def _asked(self, capability: str) -> str:
        numbers = [str(n) for n, host in enumerate(self.hosts, 1) if capability in host.capabilities]
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
        there = list(entries(root))
        for entry in there:
            hides = hidden_by.get(entry.registry) or everything or _better_named(entry)
            found.append(_shown(entry, mirror, version, hides))
            hidden_by.setdefault(entry.registry, entry.directory)
        everything = everything or next((each.directory for each in there if each.registry == DEFAULT), None)
    return found


def _better_named(entry: Entry) -> Path | None:
    """The directory that containerd looks at before this one: a port can be written in two ways."""
    first = entry.directory.with_name(directory_names(entry.registry)[0])
    return first if first != entry.directory and first.exists() else None


def _shown(entry: Entry, mirror: str, version: Version, hidden_by: Path | None) -> Shown:
    if hidden_by is not None:
        return Shown(entry.registry, entry.directory, (), (f"containerd never looks here, but at {hidden_by}",), mirror)
    try:
        hosts, notes = _of_file(entry, version)
    except LeftAlone as error:
        hosts, notes = _by_certificates(entry), [f"containerd reads nothing of hosts.toml: {error}"]
    except OSError as error:
        hosts, notes = [], [f"can't be read: {error.strerror}"]
    return Shown(entry.registry, entry.directory, tuple(hosts), tuple(notes), mirror)


def _of_file(entry: Entry, version: Version) -> tuple[list[Host], list[str]]:
    if not entry.data:
        return _by_certificates(entry), [] if entry.data is None else ["hosts.toml is empty, as if it were not there"]
    _, text = text_of(entry.data)
    document = parsed(text)
    check_headers(text, version)
    check(document)
    if ignored(document, version):
        note = 'containerd 1.x reads nothing of hosts.toml, because it has no [host."…"]'
        return _by_certificates(entry), [note]
    notes: list[str] = []
    if unseen := set(hosts_of(document)) - set(order(text, document, version)):
        notes.append(f"containerd 2.x overlooks hosts without a table header: {', '.join(sorted(unseen))}")
    if not {"ca", "client"} & document.keys() and docker_style(entry.directory):
        notes.append("the certificates in the directory are not used, because hosts.toml does not name them")
    return in_force(text, document, version), notes


def _by_certificates(entry: Entry) -> list[Host]:
    return [Host(None, settings=tuple(docker_style(entry.directory)))]
