"""containerd's hosts.toml files: peili put in front of what is there, shown, and taken out again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from peili.adapters.containerd.hosts_toml.meaning import CAPABILITIES, DEFAULT, Version
from peili.adapters.containerd.hosts_toml.places import Entry, configured, directories, directory_names, entries
from peili.adapters.containerd.hosts_toml.planning import OurHost, planned
from peili.adapters.containerd.hosts_toml.showing import Shown, shown
from peili.adapters.files import files
from peili.adapters.files.changes import Change, Outcome, Problem
from peili.adapters.files.config_path import folders
from peili.adapters.files.leftalone import LeftAlone
from peili.mirror import ConfigError
from peili.mirror.oci.selection import check_registries
from peili.mirror.peer_api.peers import base_url

_USUAL = Path("/etc/containerd/certs.d")
_DOCKERS = Path("/etc/docker/certs.d")


class HostsFiles:
    """The hosts.toml files below one containerd's `config_path`.

    Args:
        mirror: the URL of the local door, as this host's containerd reaches it.
        config_path: the folders of containerd's setting of that name, in its order; one may be several with ``:``
            between them, as containerd writes them. By default ``/etc/containerd/certs.d``, and after it
            ``/etc/docker/certs.d`` from containerd 2 on, whose own default that is.
        registries: whom for, as in ``docker.io`` and ``_default`` (each registry without a directory of its own); by
            default for every registry.
        capabilities: what containerd may ask the mirror for: ``pull``, and ``resolve`` where its resolver answers for
            tags.
        version: containerd's, as in ``2.1.4``, where it is known; else what every version understands is written.
        dial_timeout: how long a containerd that knows of it waits for a connection, as in ``500ms``.

    Methods block: in asyncio, call them in a thread. Two at work in the same folders, in one process or several, wait
    for each other. Each file is changed at once or not at all; an interrupted run is finished by the next `apply` and
    undone by the next `remove`. A file that can't be changed safely is left alone and named in the outcome, and the
    others are done. Raises ConfigError, also for a folder that k3s generates: `peili.adapters.k3s` changes what it is
    generated from.
    """

    def __init__(
        self,
        mirror: str,
        *,
        config_path: Iterable[str | Path] | None = None,
        registries: Iterable[str] = (),
        capabilities: Iterable[str] = ("pull",),
        version: str | None = None,
        dial_timeout: str = "500ms",
    ) -> None:
        self._config_path = None if config_path is None else folders(config_path)
        self.registries = _registries(registries)
        self._host = OurHost(_url(mirror), _capabilities(capabilities), dial_timeout, _version(version))

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders, in the order in which containerd looks at them."""
        if self._config_path is not None:
            return self._config_path
        return (_USUAL, _DOCKERS) if self._host.version.dockers_folder else (_USUAL,)

    @property
    def _every(self) -> tuple[Path, ...]:
        """Those of any version: at the last `apply` it may have been another one."""
        return self._config_path or (_USUAL, _DOCKERS)

    def for_version(self, version: str) -> HostsFiles:
        """The same for another version of containerd. Raises ConfigError."""
        other = copy(self)
        other._host = replace(self._host, version=_version(version))  # noqa: SLF001 - one of us
        return other

    def for_every_registry(self) -> HostsFiles:
        """The same without a choice of registries."""
        other = copy(self)
        other.registries = ()
        return other

    def apply(self, *, dry_run: bool = False) -> Outcome:
        """Put the mirror in front wherever it is not yet. With `dry_run` nothing is written, only told."""
        return self._each(self._to_apply, dry_run=dry_run)

    def remove(self, *, dry_run: bool = False) -> Outcome:
        """Take out what `apply` put in for these registries, with whatever URL and settings: what is left is what was
        there before, byte for byte, with what others have changed since.
        """
        return self._each(self._to_remove, dry_run=dry_run)

    def show(self) -> list[Shown]:
        """What is in force, whoever wrote it. Raises OSError."""
        return shown(self.roots, self._host.url, self._host.version)

    def _each(self, plans: Callable[[], Iterator[_Plan]], *, dry_run: bool) -> Outcome:
        changes: list[Change] = []
        problems: list[Problem] = []
        try:
            with nullcontext() if dry_run else files.locked(self._every):
                if not dry_run:
                    files.clean(self._every)
                for plan in plans():  # each sees what the one before it did
                    _carry_out(plan, changes, problems, dry_run=dry_run)
        except (LeftAlone, OSError) as error:
            problems.append(_problem(self.roots[0], error))
        return Outcome(tuple(changes), tuple(problems))

    def _to_apply(self) -> Iterator[_Plan]:
        for registry in self.registries or (*configured(self.roots), DEFAULT):
            yield partial(planned, self.roots, registry, self._host)

    def _to_remove(self) -> Iterator[_Plan]:
        wanted = {name for registry in self.registries for name in directory_names(registry)}
        for root in self._every:
            registries = {entry.directory for entry in entries(root)}
            for entry in directories(root):  # an earlier version wrote into folders that are no registry's
                ours = entry.directory in registries or _is_changed(entry)
                if ours and (not wanted or entry.directory.name in wanted):
                    yield partial(_without_us, entry)


_Plan: TypeAlias = Callable[[], tuple[Entry, bytes | None]]
"""Works out what a registry's hosts.toml shall be; None: there shall be none."""


def _is_changed(entry: Entry) -> bool:
    """Whether there is something of peili's in it."""
    try:
        return entry.base != entry.data
    except (LeftAlone, OSError):
        return False


def _without_us(entry: Entry) -> tuple[Entry, bytes | None]:
    try:
        return entry, entry.base
    except LeftAlone as error:
        raise LeftAlone(str(error), entry.file) from error


def _carry_out(plan: _Plan, changes: list[Change], problems: list[Problem], *, dry_run: bool) -> None:
    path: Path | None = None
    try:
        entry, after = plan()
        path = entry.file
        if entry.data == after:
            return
        if not dry_run:
            _write(entry, after)
    except (LeftAlone, OSError) as error:
        problems.append(_problem(path, error))
    else:
        changes.append(Change(entry.file, entry.data, after))


def _write(entry: Entry, content: bytes | None) -> None:
    if content is None:
        files.take_away(entry.file, made=entry.marked.made)
    else:
        files.put(entry.file, content)


def _problem(path: Path | None, error: LeftAlone | OSError) -> Problem:
    if isinstance(error, OSError):
        return Problem(path or Path(error.filename or ""), f"left alone: {error.strerror}")
    return Problem(error.path or path or Path(), f"left alone: {error}")


def _registries(registries: Iterable[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(registries))
    check_registries(name for name in names if name != DEFAULT)
    return names


def _capabilities(capabilities: Iterable[str]) -> tuple[str, ...]:
    names = tuple(capabilities)
    if "pull" not in names or not {*names} <= {*CAPABILITIES}:
        raise ConfigError("capabilities", f"pull, and maybe resolve, not {', '.join(names) or 'nothing'}")
    return names


def _url(mirror: str) -> str:
    try:
        return base_url(mirror)
    except ValueError as error:
        raise ConfigError("mirror", "http://HOST:PORT, as containerd reaches the local door") from error


def _version(version: str | None) -> Version:
    try:
        return Version(known=False) if version is None else Version.parse(version)
    except ValueError as error:
        raise ConfigError("version", f"containerd's, as 2.1.4, not {version!r}") from error
