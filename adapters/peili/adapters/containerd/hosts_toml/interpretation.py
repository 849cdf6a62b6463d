"""Which hosts containerd sends requests to, in which order and with which settings, according to a hosts.toml.

The rules are those of containerd's documentation (docs/hosts.md), and of what its versions 1.6 to 2.4 did with the
files in tests/differential.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peili.adapters.containerd.hosts_toml.model import (
    CAPABILITIES,
    RegistryHost,
    Rejected,
    bracket_message,
    check_document,
    hosts_of,
    with_absolute_paths,
)
from peili.adapters.containerd.hosts_toml.toml_subset import Document, TomlTable, decode, parse, parse_tables
from peili.adapters.containerd.version import ContainerdVersion
from peili.adapters.files.editor import Ambiguous, CannotEdit

NO_HOST = 'containerd 1.x ignores hosts.toml, because it has no table [host."…"]'
_UNKNOWN_VERSION = "that depends on containerd's version, which is not known (--containerd-version)"


@dataclass(frozen=True, slots=True)
class Interpretation:
    """What containerd does with a registry's hosts.toml.

    Attributes:
        hosts: The hosts, in the order in which containerd tries them. The last is the registry itself, or the file's
            `server`.
        rejected: Why containerd ignores the file and uses the certificates next to it; empty if it reads the file.
        has_no_host: Whether that is only because the file has no host.
        ignored_hosts: Hosts in the file that containerd does not see.
    """

    hosts: tuple[RegistryHost, ...]
    rejected: str = ""
    has_no_host: bool = False
    ignored_hosts: tuple[str, ...] = ()


def interpret(data: bytes | None, directory: Path, version: ContainerdVersion) -> Interpretation:
    """Interpret a hosts.toml.

    Args:
        data: Its content; None if there is no file.
        directory: Its directory, which need not exist.
        version: The version of containerd that reads it.

    Raises:
        Ambiguous: peili cannot tell what containerd does, or that depends on the unknown version.
        CannotEdit: The name of a certificate file is not UTF-8.
        OSError: The directory cannot be read.
    """
    found = [_interpret(data, directory, each) for each in version.candidates]
    if any(each.hosts != found[0].hosts for each in found):
        reason = next((each.rejected for each in found if each.rejected), "")
        raise Ambiguous(f"{_UNKNOWN_VERSION}: {reason}" if reason else _UNKNOWN_VERSION)
    return found[0]


def _interpret(data: bytes | None, directory: Path, version: ContainerdVersion) -> Interpretation:
    if not data:
        return Interpretation(hosts_without_file(directory))
    try:
        byte_order_mark, text = decode(data)
        document, tables = parse(text), parse_tables(text)
        _check_syntax(byte_order_mark, tables, version)
        if not version.ignores_hosts_without_header and "host" not in document:
            return Interpretation(hosts_without_file(directory), rejected=NO_HOST, has_no_host=True)
        _check(document, tables, version)
    except Rejected as error:
        return Interpretation(hosts_without_file(directory), rejected=str(error))
    urls = _hosts_with_header(tables) if version.ignores_hosts_without_header else _all_hosts(tables, document)
    document = with_absolute_paths(document, directory)
    hosts = hosts_of(document)
    ignored = tuple(sorted({*hosts} - {*urls}))
    named = [_host(url, hosts[url], version) for url in urls]
    return Interpretation((*named, _last_host(document, version)), ignored_hosts=ignored)


def hosts_without_file(directory: Path) -> tuple[RegistryHost, ...]:
    """Return the hosts if there is no hosts.toml that containerd can read. Raises CannotEdit, OSError."""
    settings = certificate_settings(directory) if directory.is_dir() else {}
    return (RegistryHost(None, settings=tuple(settings), values=with_absolute_paths(settings, directory)),)


def certificate_settings(directory: Path) -> dict[str, Any]:
    """Return `ca` and `client` for the certificate files in `directory` that are named as for Docker.

    containerd uses these files only if there is no hosts.toml, so a new hosts.toml must name them.

    Raises:
        CannotEdit: A file name is not UTF-8.
        OSError: The directory cannot be read.
    """
    names = sorted(each.name for each in directory.iterdir() if not (each.is_dir() and not each.is_symlink()))
    authorities: list[str] = []
    pairs: list[list[str]] = []
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise CannotEdit(f"the name of a certificate file is not UTF-8: {name!a}") from error
        if name.endswith(".crt"):
            authorities.append(name)
        elif name.endswith(".cert"):
            key = name.removesuffix(".cert") + ".key"
            pairs.append([name, key if (directory / key).exists() else name])  # one file may have both
    return {key: value for key, value in (("ca", authorities), ("client", pairs)) if value}


def _host(url: str, table: Mapping[str, Any], version: ContainerdVersion) -> RegistryHost:
    capabilities = tuple(dict.fromkeys(str(each).lower() for each in table.get("capabilities", ()))) or CAPABILITIES
    return RegistryHost(url, capabilities, _settings(table), _values(table, version))


def _last_host(document: Document, version: ContainerdVersion) -> RegistryHost:
    """Return `server`, or else the registry itself, for which `capabilities` and `override_path` have no effect."""
    table = {key: value for key, value in document.items() if key not in {"server", "host"}}
    if server := document.get("server"):
        return _host(server, table, version)
    for key in ("capabilities", "override_path"):
        table.pop(key, None)
    return RegistryHost(None, settings=_settings(table), values=_values(table, version))


def _settings(table: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(key for key, value in table.items() if key != "capabilities" and value is not False)


def _values(table: Mapping[str, Any], version: ContainerdVersion) -> dict[str, Any]:
    known = {"ca", "client", "skip_verify", "header", "override_path"}
    if version.has_dial_timeout:
        known.add("dial_timeout")
    return {key: value for key, value in table.items() if key in known and value not in (False, {})}


def _check(document: Document, tables: list[TomlTable], version: ContainerdVersion) -> None:
    """Check that containerd accepts what it sees of the document. Raises Rejected, Ambiguous."""
    try:
        check_document(document, version)
    except (Rejected, Ambiguous) as error:
        hosts: object = document.get("host", {})
        ignores_some = version.ignores_hosts_without_header and isinstance(hosts, dict)
        if ignores_some and {*hosts_of(document)} - {*_hosts_with_header(tables)}:
            raise Ambiguous(f"{error}, and there are hosts without a table header") from error
        raise


def _check_syntax(byte_order_mark: str, tables: list[TomlTable], version: ContainerdVersion) -> None:
    """Check that this version can parse the file. Raises Rejected."""
    if byte_order_mark and not version.reads_byte_order_mark:
        raise Rejected("containerd 2.x cannot read a file that begins with a byte-order mark; save it without one")
    if not version.reads_brackets_in_headers:
        for table in tables:
            if any(bracket in name for name in table.header for bracket in "[]"):
                raise Rejected(bracket_message("[" + ".".join(map(_quoted, table.header)) + "]"))


def _quoted(name: str) -> str:
    return name if name.replace("_", "a").replace("-", "a").isalnum() else f'"{name}"'


def _hosts_with_header(tables: list[TomlTable]) -> list[str]:
    """Return the hosts that have a table header, in order.

    A host is repeated if its tables are separated by those of another host, because containerd then tries it as often.
    """
    urls: list[str] = []
    for table in tables:
        match table.header:
            case ("host", url, *_) if not table.is_array and urls[-1:] != [url]:
                urls.append(url)
            case _:
                pass
    return urls


def _all_hosts(tables: list[TomlTable], document: Document) -> list[str]:
    """Return every host in the order of the text, as containerd 1.x tries them.

    Raises Ambiguous if a host has no table: containerd 1.x then tries the hosts in any order.
    """
    urls = list(hosts_of(document))
    if len(urls) > 1 and any(_has_host_without_table(table) for table in tables):
        raise Ambiguous('containerd 1.x tries hosts in any order, unless each is a table, [host."https://…"]')
    return urls


def _has_host_without_table(table: TomlTable) -> bool:
    """Return whether a host in it is an inline table, or a key below ``[host]``."""
    return any(
        keys[:1] == ("host",) and (table.header == ("host",) or (isinstance(value, dict) and len(keys) <= 2))
        for keys, value in table.values
    )
