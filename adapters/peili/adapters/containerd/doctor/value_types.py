"""The types of the values in containerd's configuration that the doctor reads.

With a value of another type, containerd does not start, or a plug-in does not load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

Table: TypeAlias = Mapping[str, Any]
Path: TypeAlias = tuple[str, ...]
_Type: TypeAlias = tuple[Callable[[object], bool], str]


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


_TABLE: _Type = (_is_table, "a table")
_TEXT: _Type = (lambda value: isinstance(value, str), "a string")
_BOOLEAN: _Type = (lambda value: isinstance(value, bool), "true or false")
_NUMBER: _Type = (
    lambda value: isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63,
    "a number without quotes",
)
_TABLES: _Type = (
    lambda value: _is_table(value) and all(map(_is_table, cast("dict[str, object]", value).values())),
    "tables",
)
_TEXTS: _Type = (
    lambda value: isinstance(value, list) and all(isinstance(each, str) for each in cast("list[object]", value)),
    "a list of strings",
)
_TOP: Mapping[Path, _Type] = {
    ("version",): _NUMBER,
    ("imports",): _TEXTS,
    ("disabled_plugins",): _TEXTS,
    ("plugins",): _TABLES,
    ("proxy_plugins",): _TABLES,
}
_REGISTRY: Mapping[Path, _Type] = {
    ("registry",): _TABLE,
    ("registry", "config_path"): _TEXT,
    ("registry", "mirrors"): _TABLES,
    ("registry", "configs"): _TABLES,
}
_IMAGES: Mapping[Path, _Type] = {("discard_unpacked_layers",): _BOOLEAN, ("snapshotter",): _TEXT}
_CRI: Mapping[Path, _Type] = {
    **_REGISTRY,
    ("containerd",): _TABLE,
    **{("containerd", *path): kind for path, kind in _IMAGES.items()},
}


def wrong_value(document: Table) -> str | None:
    """Return which value outside the plug-ins' tables containerd does not accept, and what it must be."""
    return _first_wrong(document, _TOP)


def wrong_setting(plugin: Table, *, is_split: bool) -> str | None:
    """Return which value the CRI plug-in does not accept in its table, and what it must be.

    Args:
        plugin: The table.
        is_split: Whether the plug-in is that of version 3, which has only the settings of images.
    """
    return _first_wrong(plugin, {**_REGISTRY, **_IMAGES} if is_split else _CRI)


def _first_wrong(table: Table, types: Mapping[Path, _Type]) -> str | None:
    for path, (is_right, expected) in types.items():
        value: Any = table
        for key in path:
            value = cast("Table", value).get(key) if _is_table(value) else None
        if value is not None and not is_right(value):
            return f"{'.'.join(path)}, which must be {expected}"
    return None
