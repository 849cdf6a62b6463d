"""What a registry's hosts.toml shall be once peili is asked first. Reads, and writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peili.adapters.containerd.hosts_toml import writing
from peili.adapters.containerd.hosts_toml.certificates import docker_style
from peili.adapters.containerd.hosts_toml.marks import put_in
from peili.adapters.containerd.hosts_toml.meaning import (
    CAPABILITIES,
    Host,
    Version,
    bracketed,
    hosts_of,
    moved,
    own_url,
)
from peili.adapters.containerd.hosts_toml.places import Entry, directory_names, entries, find
from peili.adapters.containerd.hosts_toml.reading import NO_HOST, read
from peili.adapters.containerd.hosts_toml.toml_text import Document, before_tables, parsed, text_of
from peili.adapters.files.editor import Ambiguous, CannotEdit
from peili.adapters.files.urls import same_door


@dataclass(frozen=True, slots=True)
class OurHost:
    """peili as a hosts.toml names it, for a containerd of that version."""

    url: str
    capabilities: tuple[str, ...]
    dial_timeout: str
    version: Version

    @property
    def settings(self) -> dict[str, Any]:
        """Its table."""
        settings: dict[str, Any] = {"capabilities": list(self.capabilities)}
        return settings | (
            {"dial_timeout": self.dial_timeout} if self.version.known and self.version.dial_timeout else {}
        )

    def before(self, document: Document) -> Document:
        """`document` with this host in front of all others."""
        return {**document, "host": {self.url: self.settings, **hosts_of(document)}}


def planned(roots: Sequence[Path], registry: str, host: OurHost) -> tuple[Entry, bytes]:
    """Whose hosts.toml shall have which content, so that `registry` is asked of `host` first and then of whoever is
    asked now. Raises CannotEdit, OSError.
    """
    found = find(roots, registry)
    target = found.ours
    if target is None:
        own = found.entry is not None and found.entry.registry == registry
        target = found.entry if own and found.entry else Entry(found.root / directory_names(registry)[0])
    try:
        return target, _content(target, found.entry, host)
    except Ambiguous as error:
        raise CannotEdit(
            f"peili can't tell what containerd makes of it: {error}", (found.entry or target).file
        ) from error
    except CannotEdit as error:
        raise CannotEdit(str(error), (found.entry or target).file) from error


def _content(target: Entry, origin: Entry | None, host: OurHost) -> bytes:
    """The file of `target`; `origin` is where containerd would look without us."""
    if "[" in host.url and not all(each.brackets_in_headers for each in host.version.candidates):
        raise CannotEdit(bracketed(f'[host."{host.url}"]'))
    made = _made(target)
    if target.base:
        return _edited(target, target.base, made, host)
    document: Document = {}
    if origin is not None:
        _check_read(origin, host.version)
        document = _document(origin, host.version)
        if origin is not target:
            document = moved(document, origin.directory)
    content = put_in(b"", 0, writing.tables(host.before(document)), made=made, newline="\n")
    if not _is_right(content, target, origin, host):
        where = "" if origin is None else f" in front of what {origin.file} says"
        raise CannotEdit(f"a file can't be written that has peili{where}")
    return content


def _check_read(entry: Entry, version: Version) -> None:
    """That containerd can read the file, if there is one, but for hosts that it wants. Raises CannotEdit, OSError."""
    for each in version.candidates:
        found = read(entry.base, entry.directory, each)
        if found.unread and not found.no_host:
            raise CannotEdit(found.unread)


def _document(origin: Entry, version: Version) -> Document:
    """What counts in `origin`, with what a file that was not there before would hide."""
    if not origin.base or _has_no_host(origin, version):
        return docker_style(origin.directory) if origin.directory.is_dir() else {}
    return parsed(text_of(origin.base)[1])


def _has_no_host(entry: Entry, version: Version) -> bool:
    return any(read(entry.base, entry.directory, each).no_host for each in version.candidates)


def _edited(target: Entry, base: bytes, made: int, host: OurHost) -> bytes:
    """`base` with our part where it makes `host` the first, and changes nothing else."""
    _check_read(target, host.version)
    if _is_there(target, host):
        return base
    bom, text = text_of(base)
    document = parsed(text)
    hidden = docker_style(target.directory) if _has_no_host(target, host.version) else {}
    hidden = {key: value for key, value in hidden.items() if key not in document}
    newline = "\r\n" if "\r\n" in text else "\n"
    for at, part in (
        (before_tables(text), writing.tables({**hidden, **host.before({})})),
        (0, writing.dotted(host.url, host.settings)),  # in front of hosts that are written so
    ):
        content = put_in(base, len((bom + text[:at]).encode()), part, made=made, newline=newline)
        if _says(content, host.before({**document, **hidden})) and _is_right(content, target, target, host):
            return content
    if _has_no_host(target, host.version):
        raise CannotEdit(f"{NO_HOST}; what else it says would count with peili in it: give it a host, or delete it")
    raise CannotEdit('a host can\'t be put in front; write each one as a table of its own, [host."https://…"]')


def _is_there(target: Entry, host: OurHost) -> bool:
    """Whether somebody has put it there by hand. Raises CannotEdit where it is not the first host, or is of no use."""
    for version in host.version.candidates:
        asked = read(target.base, target.directory, version).hosts
        ours = [each for each in asked if each.leads_to(host.url)]
        if ours and asked[0] != ours[0]:
            raise CannotEdit(f"{ours[0].url} is in it already, but not as the first host; move it up by hand")
        if ours and not ours[0].may("pull"):
            raise CannotEdit(f'{ours[0].url} is in it already, but not for content; add "pull" to its capabilities')
        if not ours and any(each.url == host.url for each in asked):
            raise CannotEdit(f"{host.url} is in it already, with override_path, and peili is not at such a path")
        if not ours:
            return False
    return True


def _says(content: bytes, wanted: Document) -> bool:
    try:
        return parsed(text_of(content)[1]) == wanted
    except Ambiguous:
        return False


def _is_right(content: bytes, target: Entry, origin: Entry | None, host: OurHost) -> bool:
    """Whether each containerd that it may be asks `host` first by `content`, and then whom it asks by `origin` now."""
    for version in host.version.candidates:
        asked: tuple[Host, ...] = (Host(None),)
        if origin is not None:
            asked = read(origin.base, origin.directory, version).hosts
        try:
            after = read(content, target.directory, version)
        except Ambiguous:
            return False
        rest = after.hosts[1:]
        if after.unread or after.hosts[0].url != host.url or not _same(rest, asked, target.registry):
            return False
    return True


def _same(hosts: Sequence[Host], others: Sequence[Host], registry: str) -> bool:
    """Whether the same are asked for the same, in the same way."""
    return [_told(each, registry) for each in hosts] == [_told(each, registry) for each in others]


def _told(host: Host, registry: str) -> tuple[str | None, set[str], Mapping[str, Any]]:
    own = own_url(registry)
    url = None if host.url is not None and own is not None and same_door(host.url, own) else host.url
    return url, {*host.capabilities} & {*CAPABILITIES}, host.values


def _made(target: Entry) -> int:
    """How much of the path of `target`'s file is ours to take away again."""
    if target.data is not None:
        return target.marked.made
    missing = [each for each in (target.directory, *target.directory.parents) if not each.exists()]
    if len(missing) != 1:
        return 1 + len(missing)
    return max([2, *(each for each in _made_beside(target.directory.parent) if each > 2)])


def _made_beside(root: Path) -> list[int]:
    """The same for all others in `root`: if it is ours, whoever goes last takes it along."""
    found: list[int] = []
    for each in entries(root):
        try:
            found.append(each.marked.made)
        except (CannotEdit, OSError):
            continue  # that entry's own problem
    return found
