"""Where in a TOML text something stands, found with tomllib as the judge of what is TOML."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any, cast

from peili.adapters.leftalone import LeftAlone

Document = dict[str, Any]

BOM = "\ufeff"
_MAYBE_HEADER = re.compile(r"^[ \t]*\[", re.MULTILINE)


def text_of(data: bytes) -> tuple[str, str]:
    """A byte-order mark, or nothing, and the text after it. Raises LeftAlone."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise LeftAlone(f"not UTF-8 text, at byte {error.start}") from error
    return (BOM, text[1:]) if text.startswith(BOM) else ("", text)


def parsed(text: str) -> Document:
    """The document, its keys in the order of the text. Raises LeftAlone."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LeftAlone(f"not TOML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise LeftAlone("not TOML that can be read: nested too deep") from error


def before_tables(text: str) -> int:
    """Where top-level keys end and a table may be put in: the first table's header, or the comments right above it."""
    head, *tables = _pieces(text)
    return _above_comments(head) if tables else len(head)


def headed_hosts(text: str) -> list[str]:
    """The hosts that have a table header, ``[host."…"]`` or one below it, in the order of the text."""
    found: dict[str, None] = {}
    for piece in [*_pieces(text)][1:]:
        header = parsed(piece.partition("\n")[0].rstrip("\r"))
        host: object = header.get("host")
        if isinstance(host, dict):
            found.update(dict.fromkeys(cast("dict[str, object]", host)))  # of one header, so one name at most
    return list(found)


def headers(text: str) -> list[str]:
    """The table headers of `text`, which is TOML, in its order, without white space or comments around them."""
    return [_header(piece.partition("\n")[0].strip()) for piece in [*_pieces(text)][1:]]


def _header(line: str) -> str:
    """`line` up to the end of the header that begins it: a bracket may also be inside of quotes or of a comment."""
    ends = (match.end() for match in re.finditer(r"\]+", line))
    return next((line[:end] for end in ends if _is_toml(line[:end])), line)


def _pieces(text: str) -> Iterator[str]:
    """`text`, which is TOML, cut in front of each table header; the first piece is what stands above all of them.

    A line with a bracket in front may also be inside of an array or a string. It is not where what stands before it
    is TOML by itself.
    """
    start = 0
    for match in _MAYBE_HEADER.finditer(text):
        if _is_toml(text[start : match.start()]):
            yield text[start : match.start()]
            start = match.start()
    yield text[start:]


def _above_comments(head: str) -> int:
    at = len(head)
    while at:
        line = head.rfind("\n", 0, at - 1) + 1
        if not head[line:at].lstrip(" \t").startswith("#"):
            break
        at = line
    return at if _is_toml(head[:at]) else len(head)  # such a line may also end a string


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return False
    return True
