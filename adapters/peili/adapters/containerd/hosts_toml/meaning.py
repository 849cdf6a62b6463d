"""The words for what a hosts.toml says, and what a version of containerd knows of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from peili.adapters.containerd.hosts_toml.toml_text import Document
from peili.adapters.files.urls import same_door

CAPABILITIES = ("pull", "resolve", "push")
DEFAULT = "_default"
"""The directory of every registry that has none of its own."""


@dataclass(frozen=True, slots=True)
class Version:
    """containerd's, as far as it changes how hosts.toml is read. One that is not `known` counts as 1.x, the stricter,
    where only one can be meant.
    """

    major: int = 1
    minor: int = 6
    known: bool = True

    @property
    def candidates(self) -> tuple[Version, ...]:
        """Itself, or each kind that it may be."""
        return (self,) if self.known else _KINDS

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
    def byte_order_mark(self) -> bool:
        """Whether it reads a file that begins with one."""
        return self.major < 2

    @property
    def referrers(self) -> bool:
        """Whether it knows that capability."""
        return (self.major, self.minor) >= (2, 2)

    @property
    def dockers_folder(self) -> bool:
        """Whether it looks into Docker's folder, too, where nobody says where to look."""
        return self.major >= 2

    @property
    def dial_timeout(self) -> bool:
        """Whether it knows that key."""
        return (self.major, self.minor) >= (2, 1)


_KINDS = (Version(1, 6), Version(2, 0), Version(2, 1), Version(2, 2))


@dataclass(frozen=True, slots=True)
class Host:
    """One that containerd asks. `url` is None for the registry itself; `settings` are the other keys that are set, and
    `values` what those say that containerd knows.
    """

    url: str | None
    capabilities: tuple[str, ...] = CAPABILITIES
    settings: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False, repr=False)

    def leads_to(self, mirror: str) -> bool:
        """Whether it is `mirror`, with or without the API's root, which containerd adds where it is missing, unless it
        is told to take the path as it is.
        """
        if self.url is None or ("override_path" in self.settings and not self.url.rstrip("/").endswith("/v2")):
            return False
        return same_door(self.url, mirror)

    def may(self, *capabilities: str) -> bool:
        """Whether it is asked for all of these."""
        return {*capabilities} <= {*self.capabilities}


def hosts_of(document: Document) -> dict[str, dict[str, Any]]:
    """The table of each host, in the order of the text."""
    return cast("dict[str, dict[str, Any]]", document.get("host", {}))


def own_url(registry: str) -> str | None:
    """Where containerd asks `registry` itself; None where that is no single URL."""
    if registry == DEFAULT or is_local(registry):
        return None
    return "https://registry-1.docker.io" if registry == "docker.io" else f"https://{registry}"


def is_local(registry: str) -> bool:
    """Whether it is this host's own, which containerd asks by HTTPS or by HTTP."""
    return registry.startswith(("localhost", "127.", "[::1]", "::1"))


def bracketed(header: str) -> str:
    """Why containerd 1.x can't read a file with this table header, and what would be right."""
    return (
        f"containerd 1.x can't read {header!a}, since a table's name has a bracket in it; "
        "write a host name instead of an IPv6 address, such as http://localhost:5050"
    )


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
