"""The part of TOML that the parser of every containerd reads as Python's does.

containerd 1.x and 2.x have different parsers. Both read some things that are no TOML, and do not read, or read in
another way, some that are. What is outside of this part is therefore left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from peili.adapters.containerd.hosts_toml.toml_text import is_toml, parsed, pieces
from peili.adapters.files.editor import Ambiguous

_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"\\\n]*"|'[^'\n]*')"""
_KEYS = rf"{_KEY}(?: *\. *{_KEY})*"
_HEADER = re.compile(rf"[ \t]*(?:\[ *(?P<table>{_KEYS}) *\]|\[\[ *(?P<list>{_KEYS}) *\]\])[ \t]*(?:#[^\n]*)?")
_STATEMENT = re.compile(rf"[ \t]*(?P<keys>{_KEY}(?:\.{_KEY})*)[ \t]*=(?P<value>.*)", re.DOTALL)
_NUMBERS = re.compile(r"[\s\[\],]*(?:-?(?:0|[1-9][0-9]{0,17})[\s\[\],]+)*(?:#[^\n]*)?")
_MOST = 1 << 17
"""Characters. It is read many times over, and a person's file has a few hundred."""


@dataclass(frozen=True, slots=True)
class Table:
    """A piece of a text: a header, empty for the top, and the keys that are set below it, each as a path from the top,
    with their values. `listed`: the header has two brackets.
    """

    header: tuple[str, ...]
    listed: bool
    values: tuple[tuple[tuple[str, ...], Any], ...]


def tables(text: str) -> list[Table]:
    """`text`, which is TOML, taken apart. Raises Ambiguous, where it is more than the part that all read alike."""
    if len(text) > _MOST:
        raise Ambiguous(f"it has more than {_MOST >> 10} Ki characters")
    found: list[Table] = []
    line = 1
    for piece in pieces(text):
        found.append(_table(piece, line, first=not found))
        line += piece.count("\n")
    return found


def _table(piece: str, line: int, *, first: bool) -> Table:
    header: tuple[str, ...] = ()
    listed, body, at = False, piece, line
    if not first:
        above, _, body = piece.partition("\n")
        match = _HEADER.fullmatch(above.removesuffix("\r"))
        if match is None:
            raise Ambiguous(f"line {line} is no header that every version of containerd reads alike")
        header, listed, at = _path(match["table"] or match["list"]), match["table"] is None, line + 1
    return Table(header, listed, tuple(_values(header, body, at)))


def _values(header: tuple[str, ...], body: str, line: int) -> Iterator[tuple[tuple[str, ...], Any]]:
    for at, statement in _statements(body, line):
        match = _STATEMENT.fullmatch(statement)
        if match is None:
            raise Ambiguous(f"line {at} has a key that not every version of containerd reads alike")
        keys = _path(match["keys"])
        value: Any = parsed(f"{statement}\n")
        for key in keys:
            value = value[key]
        if not _is_plain(value, match["value"]):
            raise Ambiguous(f"line {at} has a value that not every version of containerd reads alike")
        yield (*header, *keys), value


def _statements(body: str, line: int) -> Iterator[tuple[int, str]]:
    """The statements of `body`, each with the number of its line; what has only comments and blanks is none."""
    start, at = 0, line
    lines = body.split("\n")
    for number in range(1, len(lines) + 1):
        statement = "\n".join(lines[start:number])
        if is_toml(f"{statement}\n"):  # without a line end, a carriage return would be one too many
            if parsed(f"{statement}\n"):
                yield at, statement.removesuffix("\r")
            start, at = number, line + number


def _path(keys: str) -> tuple[str, ...]:
    return tuple(each[1:-1] if each[0] in "\"'" else each for each in re.findall(_KEY, keys))


def _is_plain(value: object, written: str) -> bool:
    if isinstance(value, (str, bool)):
        return True
    if isinstance(value, int):
        return _NUMBERS.fullmatch(f"{written} ") is not None
    if isinstance(value, list):
        items = cast("list[object]", value)
        kinds = {type(each) for each in items}
        return len(kinds) < 2 and kinds <= {str, int, list} and all(_is_plain(each, written) for each in items)
    if isinstance(value, dict) and "\n" not in written.strip():
        return all(_is_plain(each, written) for each in cast("Mapping[str, object]", value).values())
    return False  # a date, a fraction
