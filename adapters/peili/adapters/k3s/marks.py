"""What peili's own part of a registries.yaml looks like: how it is written, and how it is taken out again.

Text only. Where it goes is inserting.py's business, what it means is registries.py's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

MARK = "# added by peili"
"""Stands behind each line, or piece of a line, that is ours."""

KEYS = ("mirrors", "endpoint")
"""Keys of the format; all others that are ours are registries."""

_STRING = r'"(?:[^"\\\n]|\\.)*"'
_LINE = re.compile(rf"(?P<indent> *)(?P<what>- {_STRING}|(?:{'|'.join(KEYS)}|{_STRING}):) {MARK}(?P<end>\r?\n?)")
_ENDPOINT = rf'"endpoint": \[{_STRING}\]'
_PIECE = re.compile(
    rf'(?:"mirrors": \{{{_STRING}: \{{{_ENDPOINT}\}}\}}|{_STRING}: \{{{_ENDPOINT}\}}|{_ENDPOINT}|{_STRING}),? {MARK}'
    r"\r?\n +"
)


def newline_of(text: str) -> str:
    """How lines end in `text`."""
    return "\r\n" if "\r\n" in text else "\n"


def block(keys: Sequence[str], url: str, column: int, newline: str) -> str:
    """Lines that say, from `column` on, that below `keys` there is a list which begins with `url`."""
    lines = [f"{key if key in KEYS else json.dumps(key)}:" for key in keys]
    lines.append(f"- {json.dumps(url)}")
    return "".join(f"{' ' * (column + 2 * depth)}{line} {MARK}{newline}" for depth, line in enumerate(lines))


def piece(keys: Sequence[str], url: str, column: int, newline: str, *, last: bool) -> str:
    """The same within brackets, to stand before what begins at `column`; `last` where that is the closing one."""
    said = json.dumps(url)
    for key in reversed(keys):
        said = f"{json.dumps(key)}: [{said}]" if key == "endpoint" else f"{json.dumps(key)}: {{{said}}}"
    return f"{said}{'' if last else ','} {MARK}{newline}{' ' * max(column, 1)}"


def without(text: str) -> tuple[str, frozenset[str]]:
    """`text` without what is ours, and the URLs that it had. Of our keys those stay, unmarked, below which somebody has
    put something.
    """
    ours: list[str] = []
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    kept: list[str] = []  # from the last line to the first: what is below a line is known when it is looked at
    for place in reversed(range(len(lines))):
        line = lines[place]
        match = _LINE.fullmatch(line)
        if match is None:
            kept.append(line)
        elif match["what"].endswith(":") and _has_children(match, kept):
            kept.append(match["indent"] + match["what"] + match["end"])
        else:
            ours.append(match["what"])
            if not match["end"] and place:  # what was there before did not end its last line either
                lines[place - 1] = lines[place - 1].removesuffix("\n").removesuffix("\r")
    rest, found = "".join(reversed(kept)), 1
    while found:  # one piece may stand within another
        ours += [match[0] for match in _PIECE.finditer(rest)]
        rest, found = _PIECE.subn("", rest)
    return rest, frozenset(json.loads(re.findall(_STRING, each)[-1]) for each in ours if not each.endswith(":"))


def _has_children(key: re.Match[str], below: Sequence[str]) -> bool:
    """Whether what remains below a key of ours, last line first, begins with something that belongs to it."""
    for line in reversed(below):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        indent = len(line) - len(line.lstrip(" "))
        within = key["what"] == "endpoint:" and content.startswith("-")
        return indent > len(key["indent"]) or (within and indent == len(key["indent"]))
    return False
