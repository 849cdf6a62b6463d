"""What is in force for each registry according to the hosts.toml files, as `peili hosts show` reports it."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peili.adapters.containerd.hosts_toml.directories import (
    HOSTS_TOML,
    RegistryDirectory,
    directory_names,
    misplaced_files,
    registry_directories,
    registry_of,
)
from peili.adapters.containerd.hosts_toml.interpretation import (
    Interpretation,
    certificate_settings,
    hosts_without_file,
    interpret,
)
from peili.adapters.containerd.hosts_toml.model import DEFAULT, RegistryHost
from peili.adapters.containerd.version import ContainerdVersion
from peili.adapters.files import atomic
from peili.adapters.files.editor import Ambiguous, CannotEdit

_DOCKER_HUB = "https://registry-1.docker.io"
_BEGIN_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
NO_PULLS = "containerd cannot pull from this registry"
_NO_ACCESS = "this user may not read it"


@dataclass(frozen=True, slots=True)
class RegistryStatus:
    """What containerd does for one registry.

    Attributes:
        registry: The registry; ``_default`` stands for every registry without a directory of its own.
        directory: The directory that configures it.
        hosts: The hosts, in the order in which containerd tries them.
        notes: Remarks, one line each.
        mirror: The URL of peili's door.
        is_broken: Whether containerd tries no host, because it cannot use a file; a note says which.
        is_uncertain: Whether peili cannot tell what containerd does; a note says why.
    """

    registry: str
    directory: Path
    hosts: tuple[RegistryHost, ...]
    notes: tuple[str, ...]
    mirror: str
    is_broken: bool = False
    is_uncertain: bool = False

    @property
    def is_first(self) -> bool:
        """Whether containerd tries peili first."""
        return bool(self.hosts) and self.hosts[0].leads_to(self.mirror)

    def json(self) -> dict[str, Any]:
        """Return the status for programs, as values that `json.dumps` accepts."""
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
            settings = f"; with {', '.join(host.settings)}" if host.settings else ""
            lines.append(f"  {number}. {self._name(host)}: {', '.join(host.capabilities)}{settings}")
        if self.hosts and not self.is_broken:
            lines.append(
                f"  containerd resolves tags at {self._order('pull', 'resolve')}, and fetches content from "
                f"{self._order('pull')}; it tries each only if those before it fail."
            )
        return "\n".join([*lines, *(f"  Note: {note}." for note in self.notes)])

    def _order(self, *capabilities: str) -> str:
        numbers = [str(n) for n, host in enumerate(self.hosts, 1) if host.has_capabilities(*capabilities)]
        return ", then ".join(numbers) or "no host"

    def _name(self, host: RegistryHost) -> str:
        name = self._url(host) or "the registry itself"
        return f"{name} (peili)" if host.leads_to(self.mirror) else name

    def _url(self, host: RegistryHost) -> str | None:
        """Return the URL of the host. It is None for a registry itself, except for Docker Hub."""
        return _DOCKER_HUB if host.url is None and self.registry == "docker.io" else host.url


def registry_statuses(roots: Sequence[Path], mirror: str, version: ContainerdVersion) -> list[RegistryStatus]:
    """Return the status of every registry's directory, including those that another directory hides.

    Args:
        roots: The directories of `config_path`, in its order.
        mirror: The URL of peili's door.
        version: The version of containerd.

    Raises:
        OSError: One of `roots` cannot be read.
    """
    found: list[RegistryStatus] = []
    in_force: dict[str, Path] = {}
    default: Path | None = None
    for root in roots:
        for directory in registry_directories(root):
            # The first root that has a directory for the registry, or a _default, wins.
            used = in_force.setdefault(directory.registry, default or _preferred(directory))
            if used == directory.path:
                found.append(_status(directory, mirror, version))
            else:
                note = f"containerd never uses this directory, but {used}"
                found.append(RegistryStatus(directory.registry, directory.path, (), (note,), mirror))
        if default is None:
            note = f"{NO_PULLS}: this must be a directory, but it is a file"
            found += [
                RegistryStatus(registry_of(path.name), path, (), (note,), mirror, is_broken=True)
                for path in misplaced_files(root)
            ]
        default = default or next((path for path in [root / DEFAULT] if path.exists()), None)
    return found


def _preferred(directory: RegistryDirectory) -> Path:
    """Return the directory that containerd uses; a registry with a port can have two directory names."""
    first = directory.path.with_name(directory_names(directory.registry)[0])
    return first if first.exists() else directory.path


def _status(directory: RegistryDirectory, mirror: str, version: ContainerdVersion) -> RegistryStatus:
    try:
        found = interpret(directory.data, directory.path, version)
        problem = _certificate_problem(found.hosts)
    except Ambiguous as error:
        return _uncertain(directory, mirror, f"peili cannot tell how containerd reads hosts.toml: {error}")
    except CannotEdit as error:  # a link to nothing, which containerd treats like a missing file
        return _status_without_file(directory, mirror, str(error))
    except OSError as error:
        if _may_be_readable(error):
            return _uncertain(directory, mirror, f"peili cannot tell how containerd reads {HOSTS_TOML}: {_NO_ACCESS}")
        note = f"{NO_PULLS}: {HOSTS_TOML} cannot be read: {error.strerror}"
        return RegistryStatus(directory.registry, directory.path, (), (note,), mirror, is_broken=True)
    return _with_notes(directory, found.hosts, _notes(directory, found), problem, mirror)


def _status_without_file(directory: RegistryDirectory, mirror: str, reason: str) -> RegistryStatus:
    try:
        hosts = hosts_without_file(directory.path)
        problem = _certificate_problem(hosts)
    except (CannotEdit, OSError) as error:
        return _uncertain(directory, mirror, f"peili cannot tell how containerd reads {directory.path}: {error}")
    note = f"containerd ignores hosts.toml, because {reason}"
    return _with_notes(directory, hosts, [note], problem, mirror)


def _with_notes(
    directory: RegistryDirectory, hosts: tuple[RegistryHost, ...], notes: list[str], problem: str | None, mirror: str
) -> RegistryStatus:
    notes = [*notes, *([f"{NO_PULLS}: {problem}"] if problem else [])]
    return RegistryStatus(directory.registry, directory.path, hosts, tuple(notes), mirror, is_broken=bool(problem))


def _uncertain(directory: RegistryDirectory, mirror: str, note: str) -> RegistryStatus:
    return RegistryStatus(directory.registry, directory.path, (), (note,), mirror, is_uncertain=True)


def _notes(directory: RegistryDirectory, found: Interpretation) -> list[str]:
    if directory.data is None:
        return []
    if not directory.data:
        return ["hosts.toml is empty, which is the same as no file"]
    if found.rejected:
        return [found.rejected if found.has_no_host else f"containerd ignores hosts.toml: {found.rejected}"]
    notes: list[str] = []
    if found.ignored_hosts:
        notes.append(f"containerd 2.x ignores hosts without a table header: {', '.join(found.ignored_hosts)}")
    if not {"ca", "client"} & found.hosts[-1].values.keys() and certificate_settings(directory.path):
        notes.append("containerd does not use the certificates in the directory, because hosts.toml does not name them")
    return notes


def _certificate_problem(hosts: Iterable[RegistryHost]) -> str | None:
    """Return why containerd cannot use a certificate or key, and therefore tries none of `hosts`; None if it can.

    Raises Ambiguous.
    """
    for host in hosts:
        for name, value in host.values.items():
            if name not in {"ca", "client"}:
                continue
            # One path, or the paths of a certificate and of its key.
            for paths in [value] if isinstance(value, str) else value:
                if problem := _file_problem(name, [paths] if isinstance(paths, str) else paths):
                    return problem
    return None


def _file_problem(kind: str, paths: Sequence[str]) -> str | None:
    for path in paths:
        try:
            data = atomic.read(Path(path))
        except atomic.UnusualFile as error:
            raise Ambiguous(f"{path} is {error.strerror}") from error
        except ValueError:
            return f"{path!a} cannot be the path of a file"
        except OSError as error:
            if _may_be_readable(error):
                raise Ambiguous(f"{path}: {_NO_ACCESS}") from error
            return f"{path} cannot be read: {error.strerror}"
        if path == paths[0] and _BEGIN_CERTIFICATE not in data:
            return f"{path} contains no certificate"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if kind == "ca":
            context.load_verify_locations(paths[0])
        else:
            context.load_cert_chain(paths[0], paths[-1], password=lambda: b"")  # without it, OpenSSL would prompt
    except (ssl.SSLError, OSError, ValueError) as error:
        raise Ambiguous(f"{' and '.join(paths)} may not be a usable certificate") from error
    return None


def _may_be_readable(error: OSError) -> bool:
    """Return whether containerd may be able to read a file that this process can't: containerd runs as root."""
    return isinstance(error, PermissionError) and os.geteuid() != 0
