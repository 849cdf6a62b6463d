"""Where in a TOML text something stands, found with tomllib as the judge of what is TOML."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

from peili.adapters.files.editor import Ambiguous

Document = dict[str, Any]

BOM = "\ufeff"
_MAYBE_HEADER = re.compile(r"^[ \t]*\[", re.MULTILINE)


def text_of(data: bytes) -> tuple[str, str]:
    """A byte-order mark, or nothing, and the text after it. Raises Ambiguous."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Ambiguous(f"not UTF-8 text, at byte {error.start}") from error
    return (BOM, text[1:]) if text.startswith(BOM) else ("", text)


def parsed(text: str) -> Document:
    """The document, its keys in the order of the text. Raises Ambiguous."""
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, and what a number with thousands of digits raises
        raise Ambiguous(f"not TOML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise Ambiguous("not TOML that can be read: nested too deep") from error


def before_tables(text: str) -> int:
    """Where top-level keys end and a table may be put in: the first table's header, or the comments right above it."""
    head, *tables = pieces(text)
    return _above_comments(head) if tables else len(head)


def pieces(text: str) -> Iterator[str]:
    """`text`, which is TOML, cut in front of each table header; the first piece is what stands above all of them.

    A line with a bracket in front may also be inside of an array or a string. It is not where what stands before it
    is TOML by itself.
    """
    start = 0
    for match in _MAYBE_HEADER.finditer(text):
        if is_toml(text[start : match.start()]):
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
    return at if is_toml(head[:at]) else len(head)  # such a line may also end a string


def is_toml(text: str) -> bool:
    """Whether `text` is TOML by itself."""
    try:
        tomllib.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
