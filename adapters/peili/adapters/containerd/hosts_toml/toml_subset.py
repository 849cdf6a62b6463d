"""The subset of TOML that the parsers of all versions of containerd read alike, and where its tables begin in a text.

containerd 1.x and 2.x have different parsers. Both accept some texts that are not TOML, and both reject or misread some
texts that are. peili therefore edits no file that uses anything outside this subset.

peili finds the place for its section with `first_table_offset` and leaves every other byte as it is. tomlkit cannot do
that: it can insert a host in front of others only if these are removed and added again, which changes their blank lines
and quotes, and fails for dotted keys, inline tables and tables out of order. It also reads no byte-order mark, and does
not reproduce arrays of tables that are interleaved with other tables (tried with tomlkit 0.15).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from peili.adapters.files.editor import Ambiguous

Document = dict[str, Any]

_BYTE_ORDER_MARK = "\ufeff"
_POSSIBLE_HEADER = re.compile(r"^[ \t]*\[", re.MULTILINE)
_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"\\\n]*"|'[^'\n]*')"""
_KEYS = rf"{_KEY}(?: *\. *{_KEY})*"
_HEADER = re.compile(rf"[ \t]*(?:\[ *(?P<table>{_KEYS}) *\]|\[\[ *(?P<array>{_KEYS}) *\]\])[ \t]*(?:#[^\n]*)?")
_STATEMENT = re.compile(rf"[ \t]*(?P<keys>{_KEY}(?:\.{_KEY})*)[ \t]*=(?P<value>.*)", re.DOTALL)
_INTEGERS = re.compile(r"[\s\[\],]*(?:-?(?:0|[1-9][0-9]{0,17})[\s\[\],]+)*(?:#[^\n]*)?")
_MAX_CHARACTERS = 1 << 17
"""The text is parsed many times; a hosts.toml that a person wrote has a few hundred characters."""


def decode(data: bytes) -> tuple[str, str]:
    """Return the byte-order mark, or an empty string, and the text after it. Raises Ambiguous if it is not UTF-8."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Ambiguous(f"not UTF-8 text, at byte {error.start}") from error
    return (_BYTE_ORDER_MARK, text[1:]) if text.startswith(_BYTE_ORDER_MARK) else ("", text)


def parse(text: str) -> Document:
    """Return the document; its keys keep the order of the text. Raises Ambiguous if the text is not TOML."""
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or a number with thousands of digits
        raise Ambiguous(f"not TOML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise Ambiguous("not TOML that can be read: nested too deeply") from error


def _is_toml(text: str) -> bool:
    """Return whether `text` is a TOML document by itself."""
    try:
        tomllib.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def first_table_offset(text: str) -> int:
    """Return the offset at which a table can be inserted in front of all others.

    That is after the top-level keys, at the header of the first table or the comments directly above it.
    """
    top, *tables = _split_at_headers(text)
    return _start_of_comments(top) if tables else len(top)


def _start_of_comments(top: str) -> int:
    offset = len(top)
    while offset:
        line = top.rfind("\n", 0, offset - 1) + 1
        if not top[line:offset].lstrip(" \t").startswith("#"):
            break
        offset = line
    return offset if _is_toml(top[:offset]) else len(top)  # the line may also be the end of a string


def _split_at_headers(text: str) -> Iterator[str]:
    """Cut a TOML text in front of each table header; the first piece is what precedes all tables.

    A line that begins with a bracket may also be part of an array or a string. It is a header only if the text since
    the last header is TOML by itself.
    """
    start = 0
    for match in _POSSIBLE_HEADER.finditer(text):
        if _is_toml(text[start : match.start()]):
            yield text[start : match.start()]
            start = match.start()
    yield text[start:]


@dataclass(frozen=True, slots=True)
class TomlTable:
    """A table header with the keys below it.

    Attributes:
        header: The names in the header; empty for the top-level keys.
        is_array: Whether the header has double brackets.
        values: The path of each key from the top of the document, with its value.
    """

    header: tuple[str, ...]
    is_array: bool
    values: tuple[tuple[tuple[str, ...], Any], ...]


def parse_tables(text: str) -> list[TomlTable]:
    """Return the tables of a TOML text in order, the top-level keys first.

    Raises Ambiguous if the text uses more than the subset that all versions of containerd read alike.
    """
    if len(text) > _MAX_CHARACTERS:
        raise Ambiguous(f"it has more than {_MAX_CHARACTERS >> 10} Ki characters")
    tables: list[TomlTable] = []
    line = 1
    for piece in _split_at_headers(text):
        tables.append(_parse_table(piece, line, has_header=bool(tables)))
        line += piece.count("\n")
    return tables


def _parse_table(piece: str, line: int, *, has_header: bool) -> TomlTable:
    if not has_header:
        return TomlTable((), False, tuple(_parse_values((), piece, line)))
    first, _, body = piece.partition("\n")
    match = _HEADER.fullmatch(first.removesuffix("\r"))
    if match is None:
        raise Ambiguous(f"line {line} has a table header that not every version of containerd reads alike")
    header = _names(match["table"] or match["array"])
    return TomlTable(header, match["table"] is None, tuple(_parse_values(header, body, line + 1)))


def _parse_values(header: tuple[str, ...], body: str, first_line: int) -> Iterator[tuple[tuple[str, ...], Any]]:
    for line, statement in _statements(body, first_line):
        match = _STATEMENT.fullmatch(statement)
        if match is None:
            raise Ambiguous(f"line {line} has a key that not every version of containerd reads alike")
        keys = _names(match["keys"])
        value: Any = parse(f"{statement}\n")
        for key in keys:
            value = value[key]
        if not _is_plain(value, match["value"]):
            raise Ambiguous(f"line {line} has a value that not every version of containerd reads alike")
        yield (*header, *keys), value


def _statements(body: str, first_line: int) -> Iterator[tuple[int, str]]:
    """Yield each statement of `body` with its line number; comments and blank lines are left out."""
    start, line = 0, first_line
    lines = body.split("\n")
    for end in range(1, len(lines) + 1):
        statement = "\n".join(lines[start:end])
        if _is_toml(f"{statement}\n"):  # the newline belongs to a carriage return at the end
            if parse(f"{statement}\n"):
                yield line, statement.removesuffix("\r")
            start, line = end, first_line + end


def _names(keys: str) -> tuple[str, ...]:
    return tuple(each[1:-1] if each[0] in "\"'" else each for each in re.findall(_KEY, keys))


def _is_plain(value: object, source: str) -> bool:
    """Return whether all versions read `value`, written as `source`, alike. Dates and fractions are not plain."""
    if isinstance(value, (str, bool)):
        return True
    if isinstance(value, int):
        return _INTEGERS.fullmatch(f"{source} ") is not None
    if isinstance(value, list):
        items = cast("list[object]", value)
        kinds = {type(each) for each in items}
        return len(kinds) < 2 and kinds <= {str, int, list} and all(_is_plain(each, source) for each in items)
    if isinstance(value, dict) and "\n" not in source.strip():
        return all(_is_plain(each, source) for each in cast("Mapping[str, object]", value).values())
    return False
