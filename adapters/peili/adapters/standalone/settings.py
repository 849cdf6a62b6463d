"""Collects the values of the configuration from a TOML file, the environment and the command line.

Each value keeps its source, for error messages. parsing.py defines which keys exist and checks the values.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peili.mirror import ConfigError

PREFIX = "PEILI_"
OUTSIDE = ""
"""Stands for the key of a value that stands in no section."""
CONFIG_VARIABLE = "PEILI_CONFIG"
"""The variable that names the configuration file; no file, if it is empty."""
_NAME = re.compile(r"""(?<=\.)"[^"]+"|(?<=\.)'[^']+'|[^."']+""")
_NAMES = re.compile(rf"(?:{_NAME.pattern})(?:\.(?:{_NAME.pattern}))*")
"""A part of a key on the command line, which is in quotes if it has a dot, and a whole key."""
_DEEPEST = 32
"""How deeply a value may be nested. No key needs more, and checks and messages go through values recursively."""
_LARGEST = 1024
"""Bits of an integer; TOML promises 64."""
_KUBERNETES_VARIABLE = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)\w*)?)$")


@dataclass(frozen=True, slots=True)
class Setting:
    """The value of a key.

    Attributes:
        value: The value, with its TOML type.
        source: The file, variable or option that it was set in.
        text: The original text if it does not come from a TOML file, which would state its type.
    """

    value: Any
    source: str
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Assignment:
    """Sets one key.

    Attributes:
        path: The section, the key, and further keys if the option is a table.
        setting: The new value.
    """

    path: tuple[str, ...]
    setting: Setting


Sections = Mapping[str, Mapping[str, Setting]]


def from_file(path: Path) -> Iterator[Assignment]:
    """Read a TOML file. A key above all sections becomes a section with the key `OUTSIDE`.

    Raises:
        ConfigError: The file can't be read.
    """
    source = str(path)
    for section, content in _parse(path).items():
        table = cast("dict[str, Any]", content) if isinstance(content, dict) else {OUTSIDE: content}
        for key, value in table.items():
            yield Assignment((section, key), Setting(value, source))


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))  # editors of Windows write a byte-order mark
    except OSError as error:
        raise ConfigError(str(path), f"can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"not UTF-8 text, at byte {error.start}") from error
    except ValueError as error:  # TOMLDecodeError, or a number with thousands of digits
        raise ConfigError(str(path), f"not TOML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(str(path), "not TOML that can be read: nested too deeply") from error


def from_environment(environ: Mapping[str, str], keys: dict[str, tuple[str, ...]]) -> Iterator[Assignment]:
    """Read variables such as ``PEILI_ROUTER__KIND``. Raises ConfigError if one has an empty part in its name.

    A variable that resembles the name of a key is an error, too: one with an underscore too few, without the section,
    or in another case. Those that Kubernetes sets for a Service whose name begins with peili are ignored, such as
    ``PEILI_PORT``.

    Args:
        environ: The variables.
        keys: The names of all sections, each with its keys.
    """
    for name, text in sorted(environ.items()):
        if name.upper().startswith(PREFIX) and (intended := _intended_variable(name, keys)) is not None:
            raise ConfigError(name, f"not the name of a key; did you mean {intended}?")
        path = tuple(name.removeprefix(PREFIX).lower().split("__"))
        if name.startswith(PREFIX) and len(path) > 1:
            if not all(path):
                raise ConfigError(name, f"not the name of a key; write {PREFIX}SECTION__KEY")
            yield Assignment(path, Setting(toml_value(text), name, text))


def _intended_variable(name: str, keys: dict[str, tuple[str, ...]]) -> str | None:
    """Return the variable that was probably meant by `name`: ``PEILI_ROUTER_KIND`` has an underscore too few.

    `name` begins with the prefix in any case.
    """
    upper = name.upper()
    if "__" in name:
        return None if name.startswith(PREFIX) else upper
    if _KUBERNETES_VARIABLE.search(upper) or name == CONFIG_VARIABLE:
        return None
    words = upper.removeprefix(PREFIX).lower()
    section, _, key = words.partition("_")
    if key and (near := difflib.get_close_matches(section, keys, 1, 0.8)):
        return f"{PREFIX}{near[0].upper()}__{key.upper()}"
    homes = {each: home for home, names in reversed(keys.items()) for each in names if each != "kind"}
    if near := difflib.get_close_matches(words, homes, 1, 0.77):
        return f"{PREFIX}{homes[near[0]]}__{near[0]}".upper()
    return CONFIG_VARIABLE if difflib.get_close_matches(upper, [CONFIG_VARIABLE], 1, 0.8) else None


def from_flags(flags: Sequence[str]) -> Iterator[Assignment]:
    """Read the values of ``--set SECTION.KEY=VALUE``. Raises ConfigError."""
    for flag in flags:
        name, equals, text = flag.partition("=")
        path = tuple(each.strip("\"'") for each in _NAME.findall(name.strip()))
        if not equals or len(path) < 2 or not _NAMES.fullmatch(name.strip()):
            raise ConfigError("--set", f"SECTION.KEY=VALUE, not {flag!r}")
        yield Assignment(path, Setting(toml_value(text), "--set", text))


def toml_value(text: str) -> Any:
    """Return `text` as a TOML value, or unchanged if it is not one: ``5`` is a number, ``mdns`` a string."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # TOMLDecodeError, or a number with thousands of digits
        return text
    return document["value"] if len(document) == 1 else text  # a line break can start a second key


def merge(assignments: Iterable[Assignment]) -> Sections:
    """Return the sections that result. A later assignment replaces an earlier one of the same key.

    Raises:
        ConfigError: A value is nested too deeply, or an integer is too large.
    """
    sections: dict[str, dict[str, Setting]] = {}
    for assignment in assignments:
        name, key, *deeper = assignment.path
        if len(deeper) > _DEEPEST or not _is_usual(assignment.setting.value):
            expected = f"numbers of usual size, and tables and lists that are nested at most {_DEEPEST} times"
            raise ConfigError(f"{name}.{key}", expected, source=assignment.setting.source)
        section = sections.setdefault(name, {})
        new = assignment.setting
        if deeper:
            old = section[key].value if key in section else None
            new = Setting(_with_value(old, deeper, new.value), new.source)
        section[key] = new
    return sections


def _is_usual(value: object) -> bool:
    """Return whether `value` is not nested too deeply, and Python can show each integer in it."""
    level = [value]
    for _ in range(_DEEPEST):
        if any(isinstance(each, int) and each.bit_length() > _LARGEST for each in level):
            return False
        level = [each for container in level for each in _items(container)]
    return not level


def _items(value: object) -> Iterable[object]:
    """Return what a table or a list contains; nothing for other values."""
    if isinstance(value, dict):
        return cast("dict[str, object]", value).values()
    return cast("list[object]", value) if isinstance(value, list) else ()


def _with_value(table: Any, path: Sequence[str], value: Any) -> Any:
    """Return a copy of `table` with `value` at `path`. Anything that is not a table is replaced by one."""
    if not path:
        return value
    old = cast("dict[str, Any]", table) if isinstance(table, dict) else {}
    return {**old, path[0]: _with_value(old.get(path[0]), path[1:], value)}
