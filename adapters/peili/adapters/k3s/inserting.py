"""Where in a registries.yaml an endpoint goes: found in the parsed nodes, put into the text, of which no other
character is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from peili.adapters.files.yaml_text import root_node
from peili.adapters.k3s.marks import block, newline_of, piece


class NoPlace(ValueError):
    """There is no place that could be told from the text. The message says what stands in the way."""


def inserted(text: str, url: str, registry: str) -> str:
    """`text` with `url` as the first endpoint of `registry`, marked. Raises NoPlace, NotYaml."""
    path = ["mirrors", registry, "endpoint"]
    node: Any = root_node(text)
    if node is None or _is_empty(node):
        return _appended(text, block(path, url, 0, newline_of(text)))
    above: Any = None  # the key whose value `node` is
    for depth, name in enumerate(path):
        if node.id != "mapping":
            raise NoPlace(f"a mapping is wanted where line {node.start_mark.line + 1} has something else")
        found = _entry(node, name)
        if found is None:
            return _put(text, node, above, path[depth:], url)
        key, value = found
        if _is_empty(value):
            if node.flow_style or value.value:
                raise NoPlace(f"line {key.start_mark.line + 1}: nothing where {_wanted(name)} belongs; remove the key")
            return _below(text, key, block(path[depth + 1 :], url, key.start_mark.column + 2, newline_of(text)))
        above, node = key, value
    if node.id != "sequence":
        raise NoPlace(f"a list is wanted where line {node.start_mark.line + 1} has something else")
    return _put(text, node, above, [], url)


def _wanted(name: str) -> str:
    return "a list" if name == "endpoint" else "a mapping"


def _entry(mapping: Any, name: str) -> tuple[Any, Any] | None:
    entries = cast("list[tuple[Any, Any]]", mapping.value)
    return next(((key, value) for key, value in entries if key.id == "scalar" and key.value == name), None)


def _is_empty(node: Any) -> bool:
    return bool(node.id == "scalar" and node.tag == "tag:yaml.org,2002:null")


def _put(text: str, collection: Any, above: Any, keys: Sequence[str], url: str) -> str:
    """`keys` and `url` as the first entry of `collection`."""
    newline = newline_of(text)
    first = _first(collection)
    if collection.flow_style:
        index = collection.end_mark.index - 1 if first is None else first.start_mark.index
        column = index - _line_start(text, index)
        return text[:index] + piece(keys, url, column, newline, last=first is None) + text[index:]
    start = _line_start(text, first.start_mark.index)
    column = len(text[start:]) - len(text[start:].lstrip(" "))
    lines = block(keys, url, column, newline)
    return text[:start] + lines + text[start:] if above is None else _below(text, above, lines)


def _first(collection: Any) -> Any:
    if not collection.value:
        return None
    return collection.value[0] if collection.id == "sequence" else collection.value[0][0]


def _line_start(text: str, index: int) -> int:
    return text.rfind("\n", 0, index) + 1


def _below(text: str, key: Any, lines: str) -> str:
    """`lines` below the line of `key`, which may be the last one and have no end."""
    end = text.find("\n", key.end_mark.index)
    return _appended(text, lines) if end < 0 else text[: end + 1] + lines + text[end + 1 :]


def _appended(text: str, lines: str) -> str:
    """`lines` at the end. Where the last line had none, it gets an end, and our last line has none: so it is known.
    Raises NoPlace.
    """
    if not text or text.endswith("\n"):
        return text + lines
    if text.endswith("\r"):  # which would be taken for a part of our line end
        raise NoPlace("the last line ends with a carriage return alone; end it with a line feed")
    newline = newline_of(text)
    return text + newline + lines.removesuffix(newline)
