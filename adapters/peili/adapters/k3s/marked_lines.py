"""Adds an endpoint to the text of a registries.yaml, and removes it again, without changing any other character.

Each line that peili adds, or each part of a line in a flow collection (``{…}`` or ``[…]``), ends with `MARK`. What the
text means is defined in registries.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, cast

from peili.adapters.files.editor import CannotEdit
from peili.adapters.files.yaml_text import parse_root_node

MARK = "# added by peili"

_KEYS = ("mirrors", "endpoint")
"""Keys of the format. Every other key that peili adds is the name of a registry."""

_STRING = r'"(?:[^"\\\n]|\\.)*"'
_LINE = re.compile(rf"(?P<indent> *)(?P<content>- {_STRING}|(?:{'|'.join(_KEYS)}|{_STRING}):) {MARK}(?P<end>\r?\n?)")
_ENDPOINT = rf'"endpoint": \[{_STRING}\]'
_FLOW_ITEM = re.compile(
    rf'(?:"mirrors": \{{{_STRING}: \{{{_ENDPOINT}\}}\}}|{_STRING}: \{{{_ENDPOINT}\}}|{_ENDPOINT}|{_STRING}),? {MARK}'
    r"\r?\n +"
)


def insert_endpoint(text: str, url: str, registry: str) -> str:
    """Return `text` with `url` as the first endpoint of `registry`, in marked lines.

    Raises:
        CannotEdit: The place for the endpoint is not clear.
        NotYaml: The text is not YAML.
    """
    path = ["mirrors", registry, "endpoint"]
    node: Any = parse_root_node(text)
    if node is None or _is_null(node):
        return _append(text, _block_lines(path, url, 0, _newline(text)))
    parent_key: Any = None  # the key whose value is `node`
    for depth, name in enumerate(path):
        if node.id != "mapping":
            raise CannotEdit(f"line {node.start_mark.line + 1}: must be a mapping")
        found = _find(node, name)
        if found is None:
            return _insert_first(text, node, parent_key, path[depth:], url)
        key, value = found
        if _is_null(value):
            if node.flow_style or value.value:
                kind = "list" if name == "endpoint" else "mapping"
                raise CannotEdit(f"line {key.start_mark.line + 1}: the {kind} is missing; remove the key")
            lines = _block_lines(path[depth + 1 :], url, key.start_mark.column + 2, _newline(text))
            return _insert_below(text, key, lines)
        parent_key, node = key, value
    if node.id != "sequence":
        raise CannotEdit(f"line {node.start_mark.line + 1}: must be a list")
    return _insert_first(text, node, parent_key, [], url)


def _find(mapping: Any, name: str) -> tuple[Any, Any] | None:
    """Return the nodes of the key `name` and of its value."""
    entries = cast("list[tuple[Any, Any]]", mapping.value)
    return next(((key, value) for key, value in entries if key.id == "scalar" and key.value == name), None)


def _is_null(node: Any) -> bool:
    return bool(node.id == "scalar" and node.tag == "tag:yaml.org,2002:null")


def _insert_first(text: str, collection: Any, parent_key: Any, keys: Sequence[str], url: str) -> str:
    """Insert `url`, below `keys`, as the first entry of `collection`."""
    newline = _newline(text)
    entries: list[Any] = collection.value if collection.id == "sequence" else [key for key, _ in collection.value]
    if collection.flow_style:
        index = entries[0].start_mark.index if entries else collection.end_mark.index - 1
        column = index - _line_start(text, index)
        return text[:index] + _flow_item(keys, url, column, newline, is_last=not entries) + text[index:]
    start = _line_start(text, entries[0].start_mark.index)
    column = len(text[start:]) - len(text[start:].lstrip(" "))
    lines = _block_lines(keys, url, column, newline)
    return text[:start] + lines + text[start:] if parent_key is None else _insert_below(text, parent_key, lines)


def _line_start(text: str, index: int) -> int:
    return text.rfind("\n", 0, index) + 1


def _insert_below(text: str, key: Any, lines: str) -> str:
    """Insert `lines` below the line of `key`."""
    end = text.find("\n", key.end_mark.index)
    return _append(text, lines) if end < 0 else text[: end + 1] + lines + text[end + 1 :]


def _append(text: str, lines: str) -> str:
    """Append `lines`.

    If the last line has no line end, it gets one and the last added line has none. `remove_marked` recognises this.
    """
    if not text or text.endswith("\n"):
        return text + lines
    if text.endswith("\r"):  # together with our line feed, it would become part of the line end
        raise CannotEdit("the last line ends with a carriage return alone; end it with a line feed")
    newline = _newline(text)
    return text + newline + lines.removesuffix(newline)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _block_lines(keys: Sequence[str], url: str, column: int, newline: str) -> str:
    """Return lines, indented to `column`, with a list that starts with `url`, below nested `keys`."""
    lines = [f"{key if key in _KEYS else json.dumps(key)}:" for key in keys]
    lines.append(f"- {json.dumps(url)}")
    return "".join(f"{' ' * (column + 2 * depth)}{line} {MARK}{newline}" for depth, line in enumerate(lines))


def _flow_item(keys: Sequence[str], url: str, column: int, newline: str, *, is_last: bool) -> str:
    """Return the same for a flow collection, to stand before the text at `column`; `is_last` if nothing follows it."""
    item = json.dumps(url)
    for key in reversed(keys):
        item = f"{json.dumps(key)}: [{item}]" if key == "endpoint" else f"{json.dumps(key)}: {{{item}}}"
    return f"{item}{'' if is_last else ','} {MARK}{newline}{' ' * max(column, 1)}"


def remove_marked(text: str) -> tuple[str, frozenset[str]]:
    """Return `text` without the marked lines, and the URLs in them.

    A marked key stays, without its mark, if somebody has added something below it.
    """
    removed: list[str] = []
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    kept: list[str] = []  # from the last line to the first, so that what follows a line is known
    for index in reversed(range(len(lines))):
        line = lines[index]
        match = _LINE.fullmatch(line)
        if match is None:
            kept.append(line)
        elif match["content"].endswith(":") and _has_children(match, kept):
            kept.append(match["indent"] + match["content"] + match["end"])
        else:
            removed.append(match["content"])
            if not match["end"] and index:  # the line before had no line end: see `_append`
                lines[index - 1] = lines[index - 1].removesuffix("\n").removesuffix("\r")
    rest, count = "".join(reversed(kept)), 1
    while count:  # an item may contain another one
        removed += [match[0] for match in _FLOW_ITEM.finditer(rest)]
        rest, count = _FLOW_ITEM.subn("", rest)
    return rest, frozenset(json.loads(re.findall(_STRING, each)[-1]) for each in removed if not each.endswith(":"))


def _has_children(key: re.Match[str], following: Sequence[str]) -> bool:
    """Return whether the first line with content in `following`, whose last item comes first, belongs to `key`."""
    for line in reversed(following):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        indent = len(line) - len(line.lstrip(" "))
        is_item = key["content"] == "endpoint:" and content.startswith("-")
        return indent > len(key["indent"]) or (is_item and indent == len(key["indent"]))
    return False
