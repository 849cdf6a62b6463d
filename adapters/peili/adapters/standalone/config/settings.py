"""Gathers what was set, and where: in a TOML file, the environment, flags.

What the values mean is config.py's business.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peili.mirror import ConfigError

PREFIX = "PEILI_"


@dataclass(frozen=True, slots=True)
class Setting:
    """A value, and where it comes from. `text` is what was written, where no TOML document said of which type it is."""

    value: Any
    source: str
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Assignment:
    """`setting` for the key that `path` leads to: section, key, and further down in an option that is a table."""

    path: tuple[str, ...]
    setting: Setting


Sections = Mapping[str, Mapping[str, Setting]]


def from_file(path: Path) -> Iterator[Assignment]:
    """What the TOML file says. Raises ConfigError, of one line, also where it can't be read."""
    source = str(path)
    for section, content in _document(path).items():
        if not isinstance(content, dict):
            raise ConfigError(
                section, f"belongs in a section: write [SECTION] above it, not {content!r}", source=source
            )
        for key, value in cast("dict[str, Any]", content).items():
            yield Assignment((section, key), Setting(value, source))


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigError(str(path), f"can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"not UTF-8 text, at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), f"not TOML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(str(path), "not TOML that can be read: nested too deep") from error


def from_environment(environ: Mapping[str, str]) -> Iterator[Assignment]:
    """What variables such as ``PEILI_ROUTER__KIND`` say.

    Those without a double underscore are not ours: orchestrators set ``PEILI_PORT`` and the like for a service of
    that name.
    """
    for name, text in sorted(environ.items()):
        path = tuple(name.removeprefix(PREFIX).lower().split("__"))
        if name.startswith(PREFIX) and len(path) > 1:
            if not all(path):
                raise ConfigError(name, f"no name for a key; right is {PREFIX}SECTION__KEY")
            yield Assignment(path, Setting(toml_value(text), name, text))


def from_flags(flags: Sequence[str]) -> Iterator[Assignment]:
    """What ``--set SECTION.KEY=VALUE`` says. Raises ConfigError."""
    for flag in flags:
        name, equals, text = flag.partition("=")
        path = tuple(name.strip().split("."))
        if not equals or len(path) < 2 or not all(path):
            raise ConfigError("--set", f"SECTION.KEY=VALUE, not {flag!r}")
        yield Assignment(path, Setting(toml_value(text), "--set", text))


def toml_value(text: str) -> Any:
    """`text` as a TOML value where it is one, else as it stands: ``5`` is a number, ``mdns`` a string."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return document["value"] if len(document) == 1 else text  # a line break can begin a second key


def merged(assignments: Iterable[Assignment]) -> Sections:
    """The sections that result when each assignment replaces what earlier ones said of the same key."""
    sections: dict[str, dict[str, Setting]] = {}
    for assignment in assignments:
        name, key, *deeper = assignment.path
        section = sections.setdefault(name, {})
        new = assignment.setting
        if deeper:
            before = section[key].value if key in section else None
            new = Setting(_placed(before, deeper, new.value), new.source)
        section[key] = new
    return sections


def _placed(table: Any, path: Sequence[str], value: Any) -> Any:
    """A copy of `table`, or a new one where it is none, with `value` at `path`."""
    if not path:
        return value
    old = cast("dict[str, Any]", table) if isinstance(table, dict) else {}
    return {**old, path[0]: _placed(old.get(path[0]), path[1:], value)}
