"""The hosts and settings that a hosts.toml contains, and which values containerd accepts for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from peili.adapters.containerd.hosts_toml.toml_subset import Document
from peili.adapters.containerd.version import ContainerdVersion
from peili.adapters.files.editor import Ambiguous
from peili.adapters.files.urls import is_plain, same_door
from peili.mirror import ApiRoot, default_roots

CAPABILITIES = ("pull", "resolve", "push")
DEFAULT = "_default"
"""The directory of every registry that has none of its own."""

_DURATION = re.compile(r"|[-+]?(?:0|(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+)")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_TOP = {"server", "host"}
_EMBEDDED = {"hostfileconfig"}
"""The name of a Go struct in containerd, which its parsers may take for a key."""


class Rejected(Exception):
    """containerd rejects the hosts.toml and ignores all of it. The message says why, in one line."""


@dataclass(frozen=True, slots=True)
class RegistryHost:
    """A host that containerd sends requests to.

    Attributes:
        url: Its URL; None for the registry itself.
        capabilities: What containerd requests from it.
        settings: The names of its other keys that are set.
        values: The values of those settings that this containerd knows.
    """

    url: str | None
    capabilities: tuple[str, ...] = CAPABILITIES
    settings: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False, repr=False)

    def leads_to(self, mirror: str) -> bool:
        """Return whether requests to this host reach the door at `mirror`.

        containerd adds ``/v2`` to a URL that does not end with it, except with `override_path`.
        """
        if self.url is None or ("override_path" in self.settings and not self.url.rstrip("/").endswith("/v2")):
            return False
        return same_door(self.url, mirror)

    def has_capabilities(self, *capabilities: str) -> bool:
        """Return whether containerd requests all of these from it."""
        return {*capabilities} <= {*self.capabilities}


def api_root(host: RegistryHost, registry: str) -> ApiRoot:
    """Return the root of the API at `host`, with its certificates and headers. Raises ValueError.

    Args:
        host: A host for `registry`.
        registry: The registry.
    """
    url = host.url if host.url is not None else default_roots(registry)[0].url
    url = url if "://" in url else f"https://{url}"
    options: dict[str, Any] = {
        "ca": tuple(Path(each) for each in _listed(host.values.get("ca"))),
        "client": tuple(_pair(each) for each in _listed(host.values.get("client"))),
        "skip_verify": bool(host.values.get("skip_verify")),
        "headers": {name: ", ".join(_listed(value)) for name, value in host.values.get("header", {}).items()},
    }
    return ApiRoot(url.rstrip("/"), **options) if "override_path" in host.settings else ApiRoot.of(url, **options)


def _listed(value: Any) -> list[Any]:
    """Return the items of a list, or one value as a list."""
    if isinstance(value, list):
        return value  # pyright: ignore[reportUnknownVariableType] - each caller checks the items
    return [] if value is None else [value]


def _pair(value: Any) -> tuple[Path, Path]:
    """Return the files of a certificate and of its key; one file may have both."""
    files = [Path(each) for each in _listed(value)]
    return files[0], files[-1]


def hosts_of(document: Document) -> dict[str, dict[str, Any]]:
    """Return the table of each host by its URL, in the order of the text."""
    return cast("dict[str, dict[str, Any]]", document.get("host", {}))


def registry_url(registry: str) -> str | None:
    """Return where containerd reaches the registry itself, or None if it may try several URLs."""
    if registry == DEFAULT or registry.startswith(("localhost", "127.", "[::1]", "::1")):
        return None  # containerd reaches a local registry by HTTPS or HTTP
    return "https://registry-1.docker.io" if registry == "docker.io" else f"https://{registry}"


def bracket_message(header: str) -> str:
    """Say that containerd 1.x cannot read this table header, and what to write instead."""
    return (
        f"containerd 1.x cannot read {header!a}, because a table's name contains a bracket; "
        "write a host name instead of an IPv6 address, such as http://localhost:5050"
    )


def with_absolute_paths(document: Document, directory: Path) -> Document:
    """Return the document for another place: paths relative to `directory` become absolute."""
    copy = _with_absolute_paths(document, directory)
    if "host" in document:
        copy["host"] = {url: _with_absolute_paths(table, directory) for url, table in hosts_of(document).items()}
    return copy


def _with_absolute_paths(table: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    return {key: _absolute(value, directory) if key in {"ca", "client"} else value for key, value in table.items()}


def _absolute(value: object, directory: Path) -> object:
    if isinstance(value, list):
        return [_absolute(each, directory) for each in cast("list[object]", value)]
    return str(directory / value) if isinstance(value, str) and value else value


def check_document(document: Document, version: ContainerdVersion) -> None:
    """Check that containerd accepts every value.

    Raises:
        Rejected: containerd ignores the file.
        Ambiguous: peili cannot tell what containerd does.
    """
    hosts: object = document.get("host", {})
    tables = cast("dict[str, object]", hosts) if isinstance(hosts, dict) else {}
    not_tables = [url for url, table in tables.items() if not isinstance(table, dict)]
    if not_tables and len(tables) > 1 and not version.ignores_hosts_without_header:  # it crashes when it sorts them
        raise Ambiguous(f"host.{not_tables[0]!a} is not a table")
    # The names come first: a parser may read a key that is written differently as one of those that are checked below.
    _check_names("", document, {*_SETTINGS, *_TOP})
    for url, table in tables.items():
        _check_names(f"host.{url!a}.", table, {*_SETTINGS})
    if not isinstance(hosts, dict):
        raise Rejected('host must be a table for each host, [host."https://…"]')
    if not isinstance(document.get("server", ""), str):
        raise Rejected("server must be a string")
    _check_settings("", document, version)
    _check_url("server", document.get("server") or "http://x")
    for url, table in tables.items():
        if not isinstance(table, dict):
            raise Rejected(f"host.{url!a} must be a table")
        _check_settings(f"host.{url!a}.", cast("dict[str, Any]", table), version)
        _check_url("host", url)


def _check_names(prefix: str, table: object, known: set[str]) -> None:
    """Check that all parsers agree on the keys. Raises Ambiguous."""
    for key, value in cast("dict[str, object]", table).items() if isinstance(table, dict) else ():
        if key not in known and key.lower() in known | _EMBEDDED:
            raise Ambiguous(f"{prefix}{key} must be written in lower case")
        if key in known - {"header", "host"} and isinstance(value, dict):  # some versions crash
            raise Ambiguous(f"{prefix}{key} must not be a table")


def _check_url(key: str, url: str) -> None:
    if not is_plain(url):
        raise Ambiguous(f"{key} {url!a} is not a plain URL such as https://mirror.example:5000/path")


def _check_settings(prefix: str, table: Mapping[str, Any], version: ContainerdVersion) -> None:
    for key, (is_accepted, expected) in _SETTINGS.items():
        is_unknown = key == "dial_timeout" and not version.has_dial_timeout
        if key in table and not is_unknown and not is_accepted(table[key]):
            raise Rejected(f"{prefix}{key} must be {expected}")
    if not version.has_referrers and "referrers" in (each.lower() for each in table.get("capabilities", ())):
        raise Rejected(f"{prefix}capabilities has referrers, which only containerd 2.2 and later know")
    if str(table.get("dial_timeout", "")).startswith("-"):
        raise Ambiguous(f"{prefix}dial_timeout is negative")
    header: Mapping[str, str | list[str]] = table.get("header", {})
    for name, value in header.items():
        values = [value] if isinstance(value, str) else value
        if not _TOKEN.fullmatch(name) or not all(each.isprintable() for each in values):
            raise Ambiguous(f"{prefix}header.{name!a} cannot be sent as an HTTP header")


def _is_string(value: object) -> bool:
    return isinstance(value, str)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_string_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in cast("list[object]", value))


def _is_capability_list(value: object) -> bool:
    return _is_string_list(value) and {each.lower() for each in cast("list[str]", value)} <= {
        *CAPABILITIES,
        "referrers",
    }


def _is_pair_list(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, str) or (_is_string_list(each) and len(cast("list[str]", each)) == 2)
        for each in cast("list[object]", value)
    )


def _is_header(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(each, str) or _is_string_list(each) for each in cast("dict[str, object]", value).values()
    )


_SETTINGS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "capabilities": (_is_capability_list, "a list of pull, resolve and push"),
    "ca": (lambda value: _is_string(value) or _is_string_list(value), "a path or a list of paths"),
    "client": (lambda value: _is_string(value) or _is_pair_list(value), "a path, or a list of paths or of pairs"),
    "skip_verify": (_is_bool, "true or false"),
    "header": (_is_header, "a table of strings or of lists of strings"),
    "override_path": (_is_bool, "true or false"),
    "dial_timeout": (
        lambda value: _is_string(value) and bool(_DURATION.fullmatch(str(value))),
        'a string such as "1s"',
    ),
}
