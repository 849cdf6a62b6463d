"""The log lines of the command."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from peili.adapters.standalone import logs


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger(logs.LOGGER)
    before = (root.handlers[:], root.level, ours.level)
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def test_a_text_line_has_time_level_logger_and_message() -> None:
    stream = io.StringIO()
    logs.configure("text", "info", stream).info("peer %s is gone", "b")
    assert stream.getvalue().endswith("Z INFO    peili: peer b is gone\n")
    assert stream.getvalue()[10] == "T"


def test_text_from_clients_cannot_fake_a_line() -> None:
    stream = io.StringIO()
    logs.configure("text", "info", stream).info("asked for %s", "x\n2026 INFO peili: all is well\x1b[2J\u2028\x85")
    assert len(stream.getvalue().splitlines()) == 1
    assert "x\\n2026" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_a_json_line_is_one_object_with_the_keys_of_extra() -> None:
    stream = io.StringIO()
    log = logs.configure("json", "info", stream)
    log.warning("asked\nfor %s", "x", extra={"peer": "b", "path": object})
    try:
        int("odd")
    except ValueError:
        log.exception("failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["time"].endswith("Z")
    assert (first["level"], first["logger"], first["message"]) == ("warning", "peili", "asked\nfor x")
    assert first["peer"] == "b"
    assert set(first) == {"time", "level", "logger", "message", "peer", "path"}
    assert "ValueError: invalid literal" in second["exception"]


@pytest.mark.parametrize(
    ("level", "ours", "theirs"),
    [("debug", "DIWE", "IWE"), ("info", "IWE", "WE"), ("warning", "WE", "WE"), ("error", "E", "E")],
)
def test_other_libraries_log_from_warning_on_or_from_info_on_with_debug(level: str, ours: str, theirs: str) -> None:
    stream = io.StringIO()
    logs.configure("json", level, stream)
    for name in ("peili.mirror", "httpx"):
        for each in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger(name).log(each, "x")
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert "".join(each["level"][0].upper() for each in entries if each["logger"] == "peili.mirror") == ours
    assert "".join(each["level"][0].upper() for each in entries if each["logger"] == "httpx") == theirs
