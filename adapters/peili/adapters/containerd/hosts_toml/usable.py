"""Which values containerd can use in a hosts.toml: with any other it reads nothing of the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from peili.adapters.containerd.hosts_toml.meaning import CAPABILITIES, Version
from peili.adapters.containerd.hosts_toml.toml_text import Document
from peili.adapters.files.editor import Ambiguous, CannotEdit
from peili.adapters.files.urls import is_plain

_DURATION = re.compile(r"[-+]?(?:0|(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+)")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_TOP = {"server", "host"}


def check(document: Document, version: Version) -> None:
    """That containerd can use it. Raises CannotEdit; Ambiguous, where that can't be told."""
    hosts: object = document.get("host", {})
    tables = cast("dict[str, object]", hosts) if isinstance(hosts, dict) else {}
    _check_kinds(tables, version)
    _check_names("", document, {*_SETTINGS, *_TOP})
    for url, table in tables.items():
        _check_names(f"host.{url!a}.", table, {*_SETTINGS})
    if not isinstance(hosts, dict):
        raise CannotEdit('containerd can\'t use it: hosts are tables, [host."https://…"]')
    if not isinstance(document.get("server", ""), str):
        raise CannotEdit("containerd can't use it: server is a string")
    _check_settings("", document, version)
    _check_url("server", document.get("server") or "http://x")
    for url, table in tables.items():
        if not isinstance(table, dict):
            raise CannotEdit(f"containerd can't use it: host.{url!a} is no table")
        _check_settings(f"host.{url!a}.", cast("dict[str, Any]", table), version)
        _check_url("host", url)


def _check_kinds(tables: Mapping[str, object], version: Version) -> None:
    """containerd 1.x breaks down where it has to put hosts in order and one of them is no table. Raises Ambiguous."""
    odd = [url for url, table in tables.items() if not isinstance(table, dict)]
    if odd and len(tables) > 1 and not version.headers_only:
        raise Ambiguous(f"host.{odd[0]!a} is no table")


def _check_names(prefix: str, table: object, known: set[str]) -> None:
    """That its keys are what they look like. Raises Ambiguous."""
    for key, value in cast("dict[str, object]", table).items() if isinstance(table, dict) else ():
        if key not in known and key.lower() in known | _EMBEDDED:
            raise Ambiguous(f"{prefix}{key} is written in another case than containerd has it")
        if key in known - {"header", "host"} and isinstance(value, dict):  # some versions break down there
            raise Ambiguous(f"{prefix}{key} is a table")


def _check_url(what: str, url: str) -> None:
    if not is_plain(url):
        raise Ambiguous(f"{what} {url!a} is no plain URL, as https://mirror.example:5000/path")


def _check_settings(prefix: str, table: Mapping[str, Any], version: Version) -> None:
    for key, (right, expected) in _SETTINGS.items():
        if key in table and not (key == "dial_timeout" and not version.dial_timeout) and not right(table[key]):
            raise CannotEdit(f"containerd can't use it: {prefix}{key} is {expected}")
    if not version.referrers and "referrers" in (each.lower() for each in table.get("capabilities", ())):
        raise CannotEdit(f"containerd can't use it: {prefix}capabilities has referrers, which 2.2 and later know")
    if str(table.get("dial_timeout", "")).startswith("-"):
        raise Ambiguous(f"{prefix}dial_timeout is negative")
    _check_header(prefix, table.get("header", {}))


_EMBEDDED = {"hostfileconfig"}
"""A name inside of containerd that its parsers may take for a key."""


def _check_header(prefix: str, header: Mapping[str, str | list[str]]) -> None:
    for name, value in header.items():
        values = [value] if isinstance(value, str) else value
        if not _TOKEN.fullmatch(name) or not all(each.isprintable() for each in values):
            raise Ambiguous(f"{prefix}header.{name!a} can't be sent as a header")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in cast("list[object]", value))


def _are_capabilities(value: object) -> bool:
    return _are_texts(value) and {each.lower() for each in cast("list[str]", value)} <= {*CAPABILITIES, "referrers"}


def _are_pairs(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, str) or (_are_texts(each) and len(cast("list[str]", each)) == 2)
        for each in cast("list[object]", value)
    )


def _is_header(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(each, str) or _are_texts(each) for each in cast("dict[str, object]", value).values()
    )


def _is_duration(value: object) -> bool:
    return isinstance(value, str) and (not value or _DURATION.fullmatch(value) is not None)


_SETTINGS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "capabilities": (_are_capabilities, "a list of pull, resolve and push"),
    "ca": (lambda value: _is_text(value) or _are_texts(value), "a path or a list of paths"),
    "client": (lambda value: _is_text(value) or _are_pairs(value), "a path, or a list of paths or pairs of them"),
    "skip_verify": (_is_switch, "true or false"),
    "header": (_is_header, "a table of strings or lists of them"),
    "override_path": (_is_switch, "true or false"),
    "dial_timeout": (_is_duration, 'a string such as "1s"'),
}
