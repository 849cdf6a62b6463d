"""What containerd makes of a hosts.toml, by its documentation (docs/hosts.md) and its behaviour in 1.6 and 2.x."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peili.adapters.containerd.tomltext import Document, headed_hosts, headers
from peili.adapters.doorurl import same_door
from peili.adapters.leftalone import LeftAlone

CAPABILITIES = ("pull", "resolve", "push")
_KNOWN = {*CAPABILITIES, "referrers"}
"""The last is newer ones'."""
DEFAULT = "_default"
"""The directory of every registry that has none of its own."""


@dataclass(frozen=True, slots=True)
class Version:
    """containerd's, as far as it changes how hosts.toml is read. An unknown one counts as 1.x, the stricter."""

    major: int = 1
    minor: int = 0

    @classmethod
    def parse(cls, text: str) -> Version:
        """Of ``1.6.20~ds1`` or ``v2.1.0-rc.1``. Raises ValueError."""
        major, minor, *_ = text.strip().removeprefix("v").split(".")
        return cls(int(major), int(minor))

    @property
    def headers_only(self) -> bool:
        """Whether it overlooks hosts that have no table header; else it wants one host at least."""
        return self.major >= 2

    @property
    def brackets_in_headers(self) -> bool:
        """Whether it can read a table's name that has a bracket in it, as the URL of an IPv6 address has."""
        return self.major >= 2

    @property
    def dockers_folder(self) -> bool:
        """Whether it looks into Docker's folder, too, where nobody says where to look."""
        return self.major >= 2

    @property
    def dial_timeout(self) -> bool:
        """Whether it knows that key."""
        return (self.major, self.minor) >= (2, 1)


@dataclass(frozen=True, slots=True)
class Host:
    """One that containerd asks. `url` is None for the registry itself; `settings` are the other keys that are set."""

    url: str | None
    capabilities: tuple[str, ...] = CAPABILITIES
    settings: tuple[str, ...] = ()

    def leads_to(self, mirror: str) -> bool:
        """Whether it is `mirror`, with or without the API's root, which containerd adds where it is missing, unless it
        is told to take the path as it is.
        """
        if self.url is None or ("override_path" in self.settings and not self.url.rstrip("/").endswith("/v2")):
            return False
        return same_door(self.url, mirror)


def hosts_of(document: Document) -> dict[str, dict[str, Any]]:
    """The table of each host, in the order of the text."""
    return cast("dict[str, dict[str, Any]]", document.get("host", {}))


def order(text: str, document: Document, version: Version) -> list[str]:
    """The hosts in the order in which containerd tries them."""
    return headed_hosts(text) if version.headers_only else list(hosts_of(document))


def ignored(document: Document, version: Version) -> bool:
    """Whether containerd reads the file as if it were not there: 1.x does where it has no ``[host]``."""
    return not version.headers_only and "host" not in document


def in_force(text: str, document: Document, version: Version) -> list[Host]:
    """Whom containerd asks, first one first; the last is `server`, or the registry itself."""
    hosts = hosts_of(document)
    asked = [_host(url, hosts[url]) for url in order(text, document, version)]
    return [*asked, _host(document.get("server") or None, document)]


def _host(url: str | None, table: Mapping[str, Any]) -> Host:
    wanted = tuple(str(each).lower() for each in table.get("capabilities", ())) or CAPABILITIES
    return Host(url, wanted, tuple(key for key in table if key not in {"capabilities", "server", "host"}))


def check_headers(text: str, version: Version) -> None:
    """That this version's TOML parser can read the table headers of `text`: else it reads nothing of the file.

    Raises LeftAlone.
    """
    if version.brackets_in_headers:
        return
    for header in headers(text):
        if any(each in header.removeprefix("[").removesuffix("]").strip("[]") for each in "[]"):
            raise LeftAlone(bracketed(header))


def bracketed(header: str) -> str:
    """Why containerd 1.x can't read a file with this table header, and what would be right."""
    return (
        f"containerd 1.x can't read {header!a}, since a table's name has a bracket in it; "
        "write a host name instead of an IPv6 address, such as http://localhost:5050"
    )


def check(document: Document) -> None:
    """That containerd can use it: where it can't it reads nothing of the file. Raises LeftAlone."""
    hosts: object = document.get("host", {})
    if not isinstance(hosts, dict):
        raise LeftAlone('containerd can\'t use it: hosts are tables, [host."https://…"]')
    if not isinstance(document.get("server", ""), str):
        raise LeftAlone("containerd can't use it: server is a string")
    _check_settings("", document)
    for url, table in cast("dict[str, object]", hosts).items():
        if not isinstance(table, dict):
            raise LeftAlone(f"containerd can't use it: host.{url!a} is no table")
        _check_settings(f"host.{url!a}.", cast("dict[str, Any]", table))


def _check_settings(prefix: str, table: Mapping[str, Any]) -> None:
    for key, (right, expected) in _SETTINGS.items():
        if key in table and not right(table[key]):
            raise LeftAlone(f"containerd can't use it: {prefix}{key} is {expected}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in cast("list[object]", value))


def _are_capabilities(value: object) -> bool:
    return _are_texts(value) and {each.lower() for each in cast("list[str]", value)} <= _KNOWN


def _are_pairs(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, str) or (_are_texts(each) and len(cast("list[str]", each)) == 2)
        for each in cast("list[object]", value)
    )


def _is_header(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(each, str) or _are_texts(each) for each in cast("dict[str, object]", value).values()
    )


_SETTINGS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "capabilities": (_are_capabilities, "a list of pull, resolve and push"),
    "ca": (lambda value: _is_text(value) or _are_texts(value), "a path or a list of paths"),
    "client": (lambda value: _is_text(value) or _are_pairs(value), "a path, or a list of paths or pairs of them"),
    "skip_verify": (_is_switch, "true or false"),
    "header": (_is_header, "a table of strings or lists of them"),
    "override_path": (_is_switch, "true or false"),
    "dial_timeout": (_is_text, 'a string such as "1s"'),
}


def moved(document: Document, directory: Path) -> Document:
    """The same for a file elsewhere: paths that are relative to `directory` become absolute."""
    copy = _moved(document, directory)
    if "host" in document:
        copy["host"] = {url: _moved(table, directory) for url, table in hosts_of(document).items()}
    return copy


def _moved(table: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    return {key: _absolute(value, directory) if key in {"ca", "client"} else value for key, value in table.items()}


def _absolute(value: object, directory: Path) -> object:
    if isinstance(value, list):
        return [_absolute(each, directory) for each in cast("list[object]", value)]
    return str(directory / value) if isinstance(value, str) and value else value
