"""Reads JSON documents that others wrote. They may have any shape, so each value is checked. No I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, cast

from peili.mirror.oci.references import Digest

_MOST_SIZE = 2**63 - 1
"""The largest size that a descriptor can state (OCI image spec, "Descriptors")."""


def read_object(
    data: bytes | str, pairs_hook: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the JSON object in `data`.

    Args:
        data: The document.
        pairs_hook: As `object_pairs_hook` of `json.loads`.

    Raises:
        ValueError: `data` is something else, or is nested too deeply.
    """
    try:
        document: object = json.loads(data, object_pairs_hook=pairs_hook)
    except RecursionError as error:
        raise ValueError("the document is nested too deeply") from error
    return table_of(document)


def table_of(value: object) -> dict[str, Any]:
    """Return `value`, which is an object. Raises ValueError."""
    if isinstance(value, dict):
        return cast("dict[str, Any]", value)
    raise ValueError("the document has something else where an object is expected")


def list_of(value: object) -> list[object]:
    """Return `value`, which is a list. Raises ValueError."""
    if isinstance(value, list):
        return cast("list[object]", value)
    raise ValueError("the document has something else where a list is expected")


def digest_in(table: Mapping[str, Any], name: str = "digest") -> Digest:
    """Return the digest that a table has below `name`. Raises ValueError."""
    return Digest(text_in(table, name))


def text_in(table: Mapping[str, Any], name: str) -> str:
    """Return the text that a table has below `name`; an empty one if there is something else, or nothing."""
    value = table.get(name)
    return value if isinstance(value, str) else ""


def size_in(table: Mapping[str, Any]) -> int | None:
    """Return the size in bytes that a table states; None if it states none that content can have."""
    value = table.get("size")
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_SIZE else None
