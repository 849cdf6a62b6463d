"""Reads single values of a section by their type; what is wrong becomes one line that says what would be right."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection
from typing import Any, TypeVar, cast

from peili.adapters.standalone.config.settings import Sections, Setting
from peili.mirror import ConfigError

T = TypeVar("T")

_ADDRESS = re.compile(r"(?:\[[0-9a-fA-F:.]+(?:%[\w.-]+)?\]|[A-Za-z0-9_.-]*):(?P<port>[0-9]{1,5})")


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """The line for a name that means nothing: the nearest one, and all there are."""
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown {what}; {hint}there are: {', '.join(known)}"


class Section:
    """Reads one section's keys by type. Every method raises ConfigError."""

    def __init__(self, name: str, sections: Sections) -> None:
        self.name = name
        self.settings = sections.get(name, {})

    def wrong(self, key: str, expected: str) -> ConfigError:
        setting = self.settings[key]
        return ConfigError(f"{self.name}.{key}", f"{expected}, not {_shown(setting.value)}", source=setting.source)

    def value(self, key: str, kind: type[T], expected: str) -> T | None:
        setting = self.settings.get(key)
        if setting is None:
            return None
        value = _as_text(setting) if kind is str else setting.value
        if not isinstance(value, kind):
            raise self.wrong(key, expected)
        return value

    def text(self, key: str) -> str | None:
        value = self.value(key, str, "a string")
        if value == "":
            raise self.wrong(key, "a string that is not empty")
        return value

    def switch(self, key: str, default: bool) -> bool:
        value = self.value(key, bool, "true or false")
        return default if value is None else value

    def choice(self, key: str, allowed: Collection[str], default: str) -> str:
        expected = f"one of {', '.join(allowed)}"
        value = self.value(key, str, expected)
        if value is not None and value not in allowed:
            raise self.wrong(key, expected)
        return default if value is None else value

    def texts(self, key: str) -> tuple[str, ...]:
        expected = "a list of strings"
        values = cast("list[Any]", self.value(key, list, expected) or [])
        if not all(isinstance(value, str) for value in values):
            raise self.wrong(key, expected)
        return tuple(values)

    def seconds(self, key: str, default: float) -> float:
        if key not in self.settings:
            return default
        value = self.settings[key].value
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise self.wrong(key, "a number of seconds, 0 for off")
        return float(value)

    def addresses(self, key: str, default: str, *, least: int) -> tuple[str, ...]:
        expected = "HOST:PORT, [IPv6]:PORT, or a list of them"
        setting = self.settings.get(key)
        if setting is None:
            return (default,)
        many = isinstance(setting.value, list)
        values = self.texts(key) if many else (self.value(key, str, expected) or "",)
        if len(values) < least or not all(_is_address(value) for value in values):
            raise self.wrong(key, expected)
        return values


def _as_text(setting: Setting) -> Any:
    """Outside of TOML nobody writes quotes: where a string is wanted, ``PEILI_MIRROR__IDENTITY=42`` is one."""
    return setting.value if isinstance(setting.value, str) or setting.text is None else setting.text


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_address(text: str) -> bool:
    match = _ADDRESS.fullmatch(text)
    return match is not None and int(match["port"]) < 65536
