"""Logging of the command: one record per line, as text or as JSON."""

from __future__ import annotations

import json
import logging
import time
from typing import Any, TextIO

from typing_extensions import override

from peili.mirror.support.log_lines import exception_lines, one_line, shortened

LOGGER = "peili"
_STANDARD_ATTRIBUTES = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def configure(form: str, level: str, stream: TextIO | None = None) -> logging.Logger:
    """Set up logging for the process.

    Other libraries log from WARNING on, or from INFO on if `level` is ``debug``, because httpx and uvicorn log every
    request.

    Args:
        form: ``text`` or ``json``.
        level: The lowest level of peili's own records, for example ``info``.
        stream: Where to write; by default stderr.

    Returns:
        The logger for the mirror.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if level == "debug" else max(logging.WARNING, _number(level)))
    # uvicorn logs a warning for each malformed request, so any client of a door could fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    log = logging.getLogger(LOGGER)
    log.setLevel(_number(level))
    return log


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


class TextFormatter(logging.Formatter):
    """Time, level, logger and message.

    Text from clients and peers is escaped and shortened, so that it cannot fake lines or fill the log.
    """

    @override
    def format(self, record: logging.LogRecord) -> str:
        lines = [f"{_time(record)} {record.levelname:7} {record.name}: {one_line(record.getMessage())}"]
        if record.exc_info:
            lines.append(record.exc_text or exception_lines(record.exc_info))
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """A JSON object with time, level, logger, message, the keys of `extra`, and the exception with its stack."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            key: value for key, value in record.__dict__.items() if key not in _STANDARD_ATTRIBUTES
        }
        entry |= {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": shortened(record.getMessage()),
        }
        if record.exc_info:
            entry["exception"] = record.exc_text or exception_lines(record.exc_info)
        return json.dumps(entry, default=str)


def _time(record: logging.LogRecord) -> str:
    """Return the time in UTC, as in RFC 3339."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
