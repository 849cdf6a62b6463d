"""Makes log messages safe: one line, of bounded length, without control characters.

Many messages contain text from peers and clients."""

from __future__ import annotations

import logging
import re
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias, cast

from typing_extensions import override

LONGEST = 2000
"""The maximum length of a line, in characters."""
_LONGEST_ARGUMENT = 400
"""The maximum length of an argument in a line that is too long, and of an exception's text."""
_LINES = 200
"""The maximum number of lines of a traceback."""
_PROBLEMS = 32
"""How many warnings and errors are kept."""
_UNSAFE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that end a line, control a terminal, change the direction of text, or cannot be encoded."""

_ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def one_line(text: str, longest: int = LONGEST) -> str:
    """Return `text` in at most `longest` characters, with unsafe characters escaped."""
    return shortened(_UNSAFE.sub(lambda found: ascii(found[0])[1:-1], shortened(text, longest)), longest)


def shortened(text: str, longest: int = LONGEST) -> str:
    """Return `text` in at most `longest` characters. A note says if it was longer."""
    if len(text) <= longest:
        return text
    note = f" … (of {len(text)} characters)"
    return text[: longest - len(note)] + note


def exception_lines(exc_info: _ExcInfo) -> str:
    """Return the traceback as `logging` writes it, in a bounded number of lines of bounded length.

    The text of each exception is one line.
    """
    text = "".join(traceback.format_exception(*exc_info))
    for error in _with_causes(exc_info[1]):
        for text_of_error in (_text(error), *map(str, getattr(error, "__notes__", ()))):
            if text_of_error.strip():
                text = text.replace(f"{text_of_error}\n", f"{one_line(text_of_error, _LONGEST_ARGUMENT)}\n")
    lines = text.removesuffix("\n").split("\n")
    if len(lines) > _LINES:
        lines[_LINES // 2 : -_LINES // 2] = ["…"]
    return "\n".join(map(one_line, lines))


def _text(error: BaseException) -> str:
    try:
        return f": {error}"
    except Exception:  # noqa: BLE001 - the traceback notes that str() failed
        return ""


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield `error` and all errors that led to it."""
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


@dataclass(frozen=True, slots=True)
class LoggedProblem:
    """A warning or an error that was logged.

    Attributes:
        time: When, in seconds since 1970.
        level: ``warning``, ``error`` or ``critical``.
        logger: The name of the logger.
        message: The message, in one line.
    """

    time: float
    level: str
    logger: str
    message: str


class LineLogger(logging.Logger):
    """A logger that writes each message as one line of at most `LONGEST` characters.

    It passes records on to another logger. The level, filters and handlers of that logger apply.

    Args:
        to: The other logger.
        problems: Receives the warnings and errors, also those of children. By default, a new bounded list.

    Attributes:
        problems: The last warnings and errors, the newest last.
    """

    def __init__(self, to: logging.Logger, problems: deque[LoggedProblem] | None = None) -> None:
        super().__init__(to.name)
        self.parent = self._target = to
        self.problems = deque[LoggedProblem](maxlen=_PROBLEMS) if problems is None else problems

    @override
    def isEnabledFor(self, level: int) -> bool:
        return self._target.isEnabledFor(level)

    @override
    def getEffectiveLevel(self) -> int:
        return self._target.getEffectiveLevel()

    @override
    def setLevel(self, level: int | str) -> None:
        self._target.setLevel(level)

    @override
    def addHandler(self, hdlr: logging.Handler) -> None:
        self._target.addHandler(hdlr)

    @override
    def getChild(self, suffix: str) -> LineLogger:
        return LineLogger(self._target.getChild(suffix), self.problems)

    @override
    def handle(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if len(message) > LONGEST or _UNSAFE.search(message):
            if len(message) > LONGEST and isinstance(
                record.args, tuple
            ):  # so that the text after a long argument is kept
                record.args = tuple(map(_short_argument, record.args))
                message = record.getMessage()
            record.msg, record.args = one_line(message), None
        if record.exc_info:
            lines = exception_lines(record.exc_info)
            if lines != "".join(traceback.format_exception(*record.exc_info)).removesuffix("\n"):
                record.exc_text = lines  # a safe traceback is formatted by the host agent's own formatter
        if record.levelno >= logging.WARNING:
            text = one_line(record.getMessage(), _LONGEST_ARGUMENT)
            self.problems.append(LoggedProblem(record.created, record.levelname.lower(), record.name, text))
        self._target.handle(record)


def _short_argument(argument: object) -> object:
    if isinstance(argument, (int, float)):
        return argument
    text = str(argument)
    return one_line(text, _LONGEST_ARGUMENT) if len(text) > _LONGEST_ARGUMENT else argument
