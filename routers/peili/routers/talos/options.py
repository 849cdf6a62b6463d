"""The options of the Talos router."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from peili.mirror import ConfigError

_OPTIONS = ("file", "command", "port", "scheme", "interval")
_SCHEMES = ("http", "https")
_EXAMPLE = '["talosctl", "get", "members", "-o", "json"]'


@dataclass(frozen=True, slots=True)
class Options:
    """The options, checked. Where `file` is None, `command` has a program."""

    file: Path | None = None
    command: tuple[str, ...] = ()
    port: int = 5051
    scheme: str = "http"
    interval: float = 5.0


def read_options(config: Mapping[str, Any]) -> Options:
    """The options that `config` says. Raises ConfigError."""
    for key in config:
        if key not in _OPTIONS:
            raise ConfigError(key, f"unknown option; there are: {', '.join(_OPTIONS)}")
    if ("file" in config) == ("command" in config):
        raise ConfigError("file", f"either file, a path, or command, as in {_EXAMPLE}")
    return Options(
        _file(config["file"]) if "file" in config else None,
        _command(config["command"]) if "command" in config else (),
        _port(config.get("port", 5051)),
        _scheme(config.get("scheme", "http")),
        _interval(config.get("interval", 5.0)),
    )


def _file(value: Any) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ConfigError("file", f"the path of a file, not {value!r}")
    return Path(value)


def _command(value: Any) -> tuple[str, ...]:
    if not _is_list(value) or not value or not all(isinstance(each, str) and "\0" not in each for each in value):
        raise ConfigError("command", f"a list of a program and its arguments, as in {_EXAMPLE}, not {value!r}")
    return tuple(value)


def _port(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536:
        raise ConfigError("port", f"a port from 1 to 65535, not {value!r}")
    return value


def _scheme(value: Any) -> str:
    if value not in _SCHEMES:
        raise ConfigError("scheme", f"one of {', '.join(_SCHEMES)}, not {value!r}")
    return str(value)


def _interval(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0.05 <= value < math.inf:
        raise ConfigError("interval", f"seconds, 0.05 or more, not {value!r}")
    return float(value)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)
