"""What a containerd makes of a registry's hosts.toml: whom it asks, in which order, with which settings.

By its documentation (docs/hosts.md), and by what its versions from 1.6 to 2.4 did with the files of tests/judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peili.adapters.containerd.hosts_toml.certificates import docker_style
from peili.adapters.containerd.hosts_toml.meaning import CAPABILITIES, Host, Version, bracketed, hosts_of, moved
from peili.adapters.containerd.hosts_toml.plain_toml import Table, tables
from peili.adapters.containerd.hosts_toml.toml_text import Document, parsed, text_of
from peili.adapters.containerd.hosts_toml.usable import check
from peili.adapters.files.editor import Ambiguous, CannotEdit

NO_HOST = 'containerd 1.x reads nothing of hosts.toml, because it has no [host."…"]'
_UNKNOWN = "that depends on its version, which is not known (--containerd-version)"


@dataclass(frozen=True, slots=True)
class Reading:
    """What there is to a hosts.toml.

    Attributes:
        hosts: whom containerd asks, first one first; the last is the registry itself, or the file's `server`.
        unread: why containerd reads nothing of the file, and goes by the certificates beside it; empty where it does
            read it.
        no_host: whether that is only because there is no host in it.
        overlooked: hosts that are in the file and that containerd does not see.
    """

    hosts: tuple[Host, ...]
    unread: str = ""
    no_host: bool = False
    overlooked: tuple[str, ...] = ()


def read(data: bytes | None, directory: Path, version: Version) -> Reading:
    """Of a hosts.toml with `data`, if there is one, in `directory`, which need not exist. Raises Ambiguous, OSError."""
    found = [_read(data, directory, each) for each in version.candidates]
    if any(each.hosts != found[0].hosts for each in found):
        why = next((each.unread for each in found if each.unread), "")
        raise Ambiguous(f"{_UNKNOWN}: {why}" if why else _UNKNOWN)
    return found[0]


def _read(data: bytes | None, directory: Path, version: Version) -> Reading:
    if not data:
        return Reading(by_certificates(directory))
    try:
        mark, text = text_of(data)
        document, parts = parsed(text), tables(text)
        _check_mark(mark, version)
        _check_names(parts, version)
        if not version.headers_only and "host" not in document:
            return Reading(by_certificates(directory), unread=NO_HOST, no_host=True)
        _check(document, parts, version)
    except Ambiguous:
        raise
    except CannotEdit as error:
        return Reading(by_certificates(directory), unread=str(error))
    asked = _headed(parts) if version.headers_only else _all(parts, document)
    hosts = hosts_of(moved(document, directory))
    overlooked = tuple(sorted({*hosts} - {*asked}))
    known = [_host(url, hosts[url], version) for url in asked]
    return Reading((*known, _itself(moved(document, directory), version)), overlooked=overlooked)


def by_certificates(directory: Path) -> tuple[Host, ...]:
    """Whom containerd asks where there is no hosts.toml that it can read. Raises Ambiguous, OSError."""
    style = docker_style(directory) if directory.is_dir() else {}
    return (Host(None, settings=tuple(style), values=moved(style, directory)),)


def _host(url: str, table: Mapping[str, Any], version: Version) -> Host:
    wanted = tuple(dict.fromkeys(str(each).lower() for each in table.get("capabilities", ()))) or CAPABILITIES
    return Host(url, wanted, _settings(table), _values(table, version))


def _itself(document: Document, version: Version) -> Host:
    """Where no `server` is named, containerd does not look at some of its settings."""
    table = {key: value for key, value in document.items() if key not in {"server", "host"}}
    if server := document.get("server"):
        return _host(server, table, version)
    for key in ("capabilities", "override_path"):
        table.pop(key, None)
    return Host(None, settings=_settings(table), values=_values(table, version))


def _settings(table: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(key for key, value in table.items() if key != "capabilities" and value is not False)


def _values(table: Mapping[str, Any], version: Version) -> dict[str, Any]:
    known = {"ca", "client", "skip_verify", "header", "override_path", *(["dial_timeout"] * version.dial_timeout)}
    return {key: value for key, value in table.items() if key in known and value not in (False, {})}


def _check(document: Document, parts: list[Table], version: Version) -> None:
    """That containerd can use what it sees of it. Raises CannotEdit, Ambiguous."""
    try:
        check(document, version)
    except CannotEdit as error:
        hosts: object = document.get("host", {})
        if version.headers_only and isinstance(hosts, dict) and {*hosts_of(document)} - {*_headed(parts)}:
            raise Ambiguous(f"{error}, and there are hosts without a table header") from error
        raise


def _check_mark(mark: str, version: Version) -> None:
    if mark and not version.byte_order_mark:
        raise CannotEdit("containerd 2.x can't read a file that begins with a byte-order mark; save it without one")


def _check_names(parts: list[Table], version: Version) -> None:
    """That this version's parser can read the headers: else it reads nothing of the file. Raises CannotEdit."""
    if not version.brackets_in_headers:
        for part in parts:
            if any(bracket in name for name in part.header for bracket in "[]"):
                raise CannotEdit(bracketed("[" + ".".join(map(_quoted, part.header)) + "]"))


def _quoted(name: str) -> str:
    return name if name.replace("_", "a").replace("-", "a").isalnum() else f'"{name}"'


def _headed(parts: list[Table]) -> list[str]:
    """The hosts that have a header, in the order of the text. One whose headers do not follow each other is asked as
    often.
    """
    found: list[str] = []
    for part in parts:
        match part.header:
            case ("host", url, *_) if not part.listed and found[-1:] != [url]:
                found.append(url)
            case _:
                pass
    return found


def _all(parts: list[Table], document: Document) -> list[str]:
    """Every host, in the order of the text, as containerd 1.x asks them. Raises Ambiguous: it gives a host without a
    place of its own any place.
    """
    hosts = list(hosts_of(document))
    if len(hosts) > 1 and any(_has_no_place(part) for part in parts):
        raise Ambiguous('containerd 1.x asks hosts in any order, unless each is a table, [host."https://…"]')
    return hosts


def _has_no_place(part: Table) -> bool:
    """Whether there is a host in it that is one value, or a key below ``[host]``."""
    return any(
        keys[:1] == ("host",) and (part.header == ("host",) or (isinstance(value, dict) and len(keys) <= 2))
        for keys, value in part.values
    )
