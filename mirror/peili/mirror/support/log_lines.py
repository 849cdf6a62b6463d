"""Log lines that nobody can stretch or fake: much of what is logged, strangers have said."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import TypeAlias, cast

from typing_extensions import override

LONGEST = 2000
"""Characters of a line at most."""
_LONGEST_ARGUMENT = 400
"""Characters of what stands in a line that is too long, and of an exception's text."""
_LINES = 200
"""Lines of a traceback at most."""
_ODD = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What ends a line, moves a terminal's cursor, turns the direction of text, or can't be encoded."""

_ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def one_line(text: str, longest: int = LONGEST) -> str:
    """`text` in at most `longest` characters, none of which is a control character."""
    return shortened(_ODD.sub(_escaped, shortened(text, longest)), longest)


def shortened(text: str, longest: int = LONGEST) -> str:
    """`text` in at most `longest` characters; it says so where there were more."""
    if len(text) <= longest:
        return text
    note = f" … (of {len(text)} characters)"
    return text[: longest - len(note)] + note


def _escaped(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def exception_lines(exc_info: _ExcInfo) -> str:
    """The traceback as `logging` writes it, in lines that are bounded in number and length. What an exception says is
    in one line.
    """
    text = "".join(traceback.format_exception(*exc_info))
    for error in _with_causes(exc_info[1]):
        for said in (_said(error), *map(str, getattr(error, "__notes__", ()))):
            if said.strip():
                text = text.replace(f"{said}\n", f"{one_line(said, _LONGEST_ARGUMENT)}\n")
    lines = text.removesuffix("\n").split("\n")
    if len(lines) > _LINES:
        lines[_LINES // 2 : -_LINES // 2] = ["…"]
    return "\n".join(map(one_line, lines))


def _said(error: BaseException) -> str:
    try:
        return f": {error}"
    except Exception:  # noqa: BLE001 - traceback says that it can't be said
        return ""


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, and all that led to it."""
    seen = set[int]()
    found = [error]
    while found:
        each = found.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            found += [each.__cause__, each.__context__]
            if isinstance(each, BaseExceptionGroup):
                found += cast("BaseExceptionGroup[BaseException]", each).exceptions


class LineLogger(logging.Logger):
    """Logs to `to`, whose level, filters and handlers decide; each message is one line, no longer than `LONGEST`."""

    def __init__(self, to: logging.Logger) -> None:
        super().__init__(to.name)
        self.parent = self._to = to

    @override
    def isEnabledFor(self, level: int) -> bool:
        return self._to.isEnabledFor(level)

    @override
    def getEffectiveLevel(self) -> int:
        return self._to.getEffectiveLevel()

    @override
    def setLevel(self, level: int | str) -> None:
        self._to.setLevel(level)

    @override
    def addHandler(self, hdlr: logging.Handler) -> None:
        self._to.addHandler(hdlr)

    @override
    def getChild(self, suffix: str) -> LineLogger:
        return LineLogger(self._to.getChild(suffix))

    @override
    def handle(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if len(message) > LONGEST or _ODD.search(message):
            if len(message) > LONGEST and isinstance(record.args, tuple):  # what stands behind a long one stays
                record.args = tuple(map(_short_argument, record.args))
                message = record.getMessage()
            record.msg, record.args = one_line(message), None
        if record.exc_info:
            lines = exception_lines(record.exc_info)
            if lines != "".join(traceback.format_exception(*record.exc_info)).removesuffix("\n"):
                record.exc_text = lines  # else the host's formatter makes it, in its own way
        self._to.handle(record)


def _short_argument(argument: object) -> object:
    if isinstance(argument, (int, float)):
        return argument
    text = str(argument)
    return one_line(text, _LONGEST_ARGUMENT) if len(text) > _LONGEST_ARGUMENT else argument
