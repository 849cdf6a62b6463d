"""Sets up logging for the process of the command: one record a line, as text or as JSON. Libraries stay quiet."""

from __future__ import annotations

import json
import logging
import time
from typing import Any, TextIO

from typing_extensions import override

from peili.mirror.support.log_lines import exception_lines, one_line, shortened

LOGGER = "peili"
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def configure(form: str, level: str, stream: TextIO | None = None) -> logging.Logger:
    """Log to `stream` (stderr), as `form` says; the logger to hand to the mirror.

    Other libraries' loggers are heard from WARNING on (with level ``debug`` from INFO on): httpx and uvicorn tell of
    every request.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if level == "debug" else max(logging.WARNING, _number(level)))
    # It warns of each request that is none: whoever reaches a door could fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    log = logging.getLogger(LOGGER)
    log.setLevel(_number(level))
    return log


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


class TextFormatter(logging.Formatter):
    """Time, level, logger, message. What came from outside can't fake a line, or make one as long as it likes."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        lines = [f"{_time(record)} {record.levelname:7} {record.name}: {one_line(record.getMessage())}"]
        if record.exc_info:
            lines.append(record.exc_text or exception_lines(record.exc_info))
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, whatever `extra` held, and the exception with its stack."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
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
    """RFC 3339, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
