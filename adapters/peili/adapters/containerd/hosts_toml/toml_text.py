"""Writes documents as TOML text: what tomllib reads from the text is the document."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

_BARE_KEY = re.compile("[A-Za-z0-9_-]+")


def format_document(document: Mapping[str, Any]) -> str:
    """Return the text of a document, without a newline at the end. Tables have headers.

    Args:
        document: Values of the types that tomllib returns.
    """
    return "\n".join(_lines(document, ())).lstrip("\n")


def format_key(key: str) -> str:
    """Return the text of a key, in quotes if it needs them."""
    return key if _BARE_KEY.fullmatch(key) else _format_string(key)


def format_value(value: Any) -> str:
    """Return the text of a value, on one line. A table is an inline table."""
    if isinstance(value, str):
        return _format_string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, Mapping):
        table = cast("Mapping[str, Any]", value)
        return f"{{{', '.join(f'{format_key(key)} = {format_value(each)}' for key, each in table.items())}}}"
    if _is_array(value):
        return f"[{', '.join(map(format_value, value))}]"
    return repr(value)  # numbers look as in Python


def _format_string(text: str) -> str:
    # JSON's escapes are TOML's. TOML also wants one for the character 7F.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of a table: first its values, because what follows a header belongs to that table."""
    below = {key: _tables(value) for key, value in table.items()}
    for key, value in table.items():
        if not below[key]:
            yield f"{format_key(key)} = {format_value(value)}"
    for key, tables in below.items():
        name = ".".join(map(format_key, (*path, key)))
        for each in tables:
            if table[key] is not each:
                yield from ("", f"[[{name}]]")
            elif not each or not all(isinstance(value, Mapping) for value in each.values()):  # else it needs no header
                yield from ("", f"[{name}]")
            yield from _lines(each, (*path, key))


def _tables(value: Any) -> Sequence[Mapping[str, Any]]:
    """Return the tables that are written with headers: the value, or the elements of an array of tables."""
    if isinstance(value, Mapping):
        return (cast("Mapping[str, Any]", value),)
    return value if _is_array(value) and all(isinstance(each, Mapping) for each in value) else ()


def _is_array(value: Any) -> bool:
    return isinstance(value, list)
