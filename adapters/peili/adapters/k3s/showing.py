"""Says what a registries.yaml means for each registry, and whether it is in force."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peili.adapters.files.urls import same_door
from peili.adapters.k3s.registries import EVERY, Entry, configured, read


@dataclass(frozen=True, slots=True)
class Shown:
    """What k3s has containerd do for one registry (``*``: for each that has no entry).

    Attributes:
        endpoints: whom it asks, first one first; after them the registry itself.
        notes: what else there is to know, each one line.
        mirror: peili's URL.
    """

    registry: str
    endpoints: tuple[str, ...]
    notes: tuple[str, ...]
    mirror: str

    @property
    def is_first(self) -> bool:
        """Whether peili is asked first."""
        return bool(self.endpoints) and same_door(self.endpoints[0], self.mirror)

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "registry": self.registry,
            "peili_first": self.is_first,
            "endpoints": list(self.endpoints),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        named = [f"{each} (peili)" if same_door(each, self.mirror) else each for each in self.endpoints]
        asked = [f"  {number}. {each}" for number, each in enumerate([*named, "the registry itself"], 1)]
        return "\n".join([self.registry, *asked, *(f"  Note: {note}." for note in self.notes)])


def shown(text: str, mirror: str, data_dir: Path) -> list[Shown]:
    """Every registry that has an entry in `text`. Raises Unusable."""
    entries, generated = read(text), data_dir / "agent/etc/containerd/certs.d"
    found = [Shown(each.registry, each.endpoints, (*_notes(each, mirror, generated),), mirror) for each in entries]
    names = {each.registry for each in entries}
    return [*found, *_uncovered(text, names, mirror)]


def _notes(entry: Entry, mirror: str, generated: Path) -> list[str]:
    notes: list[str] = []
    if any(same_door(each, mirror) for each in entry.endpoints):
        if entry.rewrites:
            notes.append(
                "names are rewritten for every endpoint, peili too: content is found all the same, since it goes by "
                "digest, but tags, and peili's `exclude`, see the rewritten name"
            )
        if generated.is_dir() and not _in_force(entry.registry, mirror, generated):
            notes.append("not in force yet: k3s and RKE2 read the file when they start")
    return notes


def _in_force(registry: str, mirror: str, generated: Path) -> bool:
    """Whether what k3s wrote for containerd when it last started names peili."""
    host, _, port = registry.rpartition(":")
    names = ("_default",) if registry == EVERY else (registry, f"{host}_{port}_")
    for name in names:
        try:
            return f'"{mirror}' in (generated / name / "hosts.toml").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
    return False


def _uncovered(text: str, names: set[str], mirror: str) -> list[Shown]:
    """Hosts that have settings under ``configs`` only: k3s writes a hosts.toml for each, so ``*`` does not count."""
    endpoints = {each.split("://", 1)[-1].split("/", 1)[0] for entry in read(text) for each in entry.endpoints}
    note = "it has an entry under configs, so * does not count for it; to have peili asked, name it with --registry"
    return [Shown(each, (), (note,), mirror) for each in configured(text) if each not in names | endpoints | {EVERY}]
