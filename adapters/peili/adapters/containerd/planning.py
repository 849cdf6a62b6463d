"""What a registry's hosts.toml shall be once peili is asked first. Reads, and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peili.adapters.containerd import writing
from peili.adapters.containerd.certificates import docker_style
from peili.adapters.containerd.marks import put_in
from peili.adapters.containerd.meaning import Version, bracketed, check, check_headers, hosts_of, ignored, moved, order
from peili.adapters.containerd.places import Entry, directory_names, entries, find
from peili.adapters.containerd.tomltext import Document, before_tables, parsed, text_of
from peili.adapters.doorurl import same_door
from peili.adapters.leftalone import LeftAlone


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
        return settings | ({"dial_timeout": self.dial_timeout} if self.version.dial_timeout else {})

    def before(self, document: Document) -> Document:
        """`document` with this host in front of all others."""
        return {**document, "host": {self.url: self.settings, **hosts_of(document)}}


def planned(roots: Sequence[Path], registry: str, host: OurHost) -> tuple[Entry, bytes]:
    """Whose hosts.toml shall have which content, so that `registry` is asked of `host` first and then of whoever is
    asked now. Raises LeftAlone, OSError.
    """
    found = find(roots, registry)
    target = found.ours
    if target is None:
        own = found.entry is not None and found.entry.registry == registry
        target = found.entry if own and found.entry else Entry(found.root / directory_names(registry)[0])
    try:
        return target, _content(target, found.entry, host)
    except LeftAlone as error:
        raise LeftAlone(str(error), (found.entry or target).file) from error


def _content(target: Entry, origin: Entry | None, host: OurHost) -> bytes:
    """The file of `target`; `origin` is where containerd would look without us."""
    if "[" in host.url and not host.version.brackets_in_headers:
        raise LeftAlone(bracketed(f'[host."{host.url}"]'))
    made = _made(target)
    if target.base:
        return _edited(target.directory, target.base, made, host)
    document = {} if origin is None else _document(origin, host.version)
    if origin is not None and origin is not target:
        document = moved(document, origin.directory)
    return put_in(b"", 0, writing.tables(host.before(document)), made=made, newline="\n")


def _document(origin: Entry, version: Version) -> Document:
    """What counts in `origin`, with what a file that was not there before would hide."""
    text = text_of(origin.base)[1] if origin.base else ""
    document = parsed(text)
    check_headers(text, version)
    check(document)
    hidden = docker_style(origin.directory) if not origin.base or ignored(document, version) else {}
    return {**hidden, **document}


def _edited(directory: Path, base: bytes, made: int, host: OurHost) -> bytes:
    """`base` with our part where it makes `host` the first, and changes nothing else."""
    bom, text = text_of(base)
    document = parsed(text)
    check_headers(text, host.version)
    check(document)
    asked = order(text, document, host.version)
    by_hand = [url for url in asked if same_door(url, host.url)]
    if by_hand:
        if asked[0] == by_hand[0]:
            return base
        raise LeftAlone(f"{by_hand[0]} is in it already, but not as the first host; move it up by hand")
    hidden = docker_style(directory) if ignored(document, host.version) else {}
    hidden = {key: value for key, value in hidden.items() if key not in document}
    newline = "\r\n" if "\r\n" in text else "\n"
    for at, part in (
        (before_tables(text), writing.tables({**hidden, **host.before({})})),
        (0, writing.dotted(host.url, host.settings)),  # in front of hosts that are written so
    ):
        content = put_in(base, len((bom + text[:at]).encode()), part, made=made, newline=newline)
        if _is_right(content, text, host.before({**document, **hidden}), host):
            return content
    raise LeftAlone('a host can\'t be put in front; write each one as a table of its own, [host."https://…"]')


def _is_right(content: bytes, before: str, wanted: Document, host: OurHost) -> bool:
    _, text = text_of(content)
    try:
        document = parsed(text)
    except LeftAlone:
        return False
    others = order(before, parsed(before), host.version)
    return document == wanted and order(text, document, host.version) == [host.url, *others]


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
        except (LeftAlone, OSError):
            continue  # that entry's own problem
    return found
