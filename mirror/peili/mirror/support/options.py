"""Reads and checks the options of a plug-in: the table that `Plugin.from_config` receives."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from peili.mirror.errors import ConfigError

_T = TypeVar("_T")

_LONGEST_VALUE = 80
"""Characters of a wrong value that an error repeats."""
MISSING: Final[Any] = object()
"""Stands for a default or a value that is not given."""


class Options:
    """A table of options, read key by key::

        options = Options(config, "path", "interval")
        path = options.path("path", absolute=True)
        interval = options.number("interval", 5.0, minimum=0.05, expected="seconds, 0.05 or more")

    Every method that reads an option raises `ConfigError` if the value is wrong. The error names the key and says what
    would be right. If the key is missing, the method returns `default` unchanged; without a `default`, it raises
    ConfigError. `expected` replaces the words for a right value in the error.

    Args:
        config: The table. It is not changed.
        known: The names of all options that exist.
        within: The dotted key of the table itself, if it is nested in another one.
        listed_in: A document that lists all options. The error for an unknown one then names it instead of all options.

    Raises:
        ConfigError: `config` has a key that is not in `known`.
    """

    def __init__(self, config: Mapping[str, Any], *known: str, within: str = "", listed_in: str = "") -> None:
        self._config = config
        self._prefix = f"{within}." if within else ""
        for key in config:
            if key not in known:
                raise ConfigError(self._prefix + key, unknown_name("option", key, known, listed_in))

    def __contains__(self, key: str) -> bool:
        """Return whether the option `key` is given."""
        return key in self._config

    def wrong(self, key: str, expected: str, value: object = MISSING) -> ConfigError:
        """Return the error for a wrong option, for the checks of a plug-in itself.

        Args:
            key: The option, or a place in it such as ``peers[0]``.
            expected: What would be right.
            value: The wrong value; by default the value of the option `key`, if that is given.
        """
        if value is MISSING:
            value = self._config.get(key, MISSING)
        instead = "" if value is MISSING else f", not {_shown(value)}"
        return ConfigError(self._prefix + key, expected + instead)

    def value(self, key: str, kind: type[_T] | tuple[type[_T], ...], expected: str, default: Any = MISSING) -> Any:
        """Return the value of an option, which must be an instance of `kind`. A bool does not count as a number."""
        value = self._config.get(key, default)
        if key in self._config:
            # In Python, a bool is an int, but `true` in a configuration does not mean 1.
            fits = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
            if not fits:
                raise self.wrong(key, expected)
        elif value is MISSING:
            raise self.wrong(key, expected)
        return value

    def text(self, key: str, default: str | _T = MISSING, *, expected: str = "a string that is not empty") -> str | _T:
        """Return a string. It must not be empty."""
        value: str | _T = self.value(key, str, expected, default)
        if key in self and not value:
            raise self.wrong(key, expected)
        return value

    def boolean(self, key: str, default: bool | _T = MISSING, *, expected: str = "true or false") -> bool | _T:
        """Return true or false."""
        value: bool | _T = self.value(key, bool, expected, default)
        return value

    def integer(
        self,
        key: str,
        default: int | _T = MISSING,
        *,
        minimum: int = 0,
        maximum: int = 2**53,
        expected: str | None = None,
    ) -> int | _T:
        """Return an integer from `minimum` to `maximum`."""
        expected = expected or f"a whole number from {minimum} to {maximum}"
        value: Any = self.value(key, int, expected, default)
        if key in self and not minimum <= value <= maximum:
            raise self.wrong(key, expected)
        return cast("int | _T", value)

    def number(
        self,
        key: str,
        default: float | _T = MISSING,
        *,
        minimum: float = 0.0,
        maximum: float = 1e9,
        expected: str | None = None,
    ) -> float | _T:
        """Return a number from `minimum` to `maximum`, such as a duration in seconds.

        The default maximum is about 31 years. The system's timers can't be set to much more.
        """
        expected = expected or f"a number, {minimum:g} or more"
        value: Any = self.value(key, (int, float), expected, default)
        if key not in self:
            return cast("float | _T", value)
        if not minimum <= value < math.inf:  # false for NaN, too
            raise self.wrong(key, expected)
        if value > maximum:
            raise self.wrong(key, f"a number up to {maximum:.0f}")
        return float(value)

    def choice(self, key: str, allowed: Collection[str], default: str | _T = MISSING) -> str | _T:
        """Return a string, which must be in `allowed`."""
        expected = f"one of {', '.join(allowed)}"
        value: str | _T = self.value(key, str, expected, default)
        if key in self and value not in allowed:
            raise self.wrong(key, expected)
        return value

    def path(
        self, key: str, default: Path | _T = MISSING, *, absolute: bool = False, expected: str | None = None
    ) -> Path | _T:
        """Return a path. With `absolute`, it must be absolute. It is not checked whether a file exists there."""
        expected = expected or ("an absolute path" if absolute else "a path")
        value: Any = self.value(key, (str, os.PathLike), expected, default)
        if key not in self:
            return cast("Path | _T", value)
        path = Path(value)
        if not str(value) or "\0" in str(value) or (absolute and not path.is_absolute()):
            raise self.wrong(key, expected)
        return path

    def sequence(self, key: str, expected: str, default: Any = MISSING, *, empty: bool = False) -> tuple[Any, ...]:
        """Return the items of a list, of any type. The list must not be empty unless `empty` is true."""
        value: Any = self.value(key, (list, tuple), expected, default)
        if key in self and not value and not empty:
            raise self.wrong(key, expected)
        return tuple(value)

    def texts(
        self, key: str, default: Any = MISSING, *, empty: bool = False, expected: str = "a list of strings"
    ) -> tuple[str, ...]:
        """Return the strings of a list. The list must not be empty unless `empty` is true."""
        values = self.sequence(key, expected, default, empty=empty)
        if not all(isinstance(each, str) for each in values):
            raise self.wrong(key, expected)
        return values

    def mapping(
        self, key: str, default: Any = MISSING, *, expected: str = 'a table of strings, as in {zone = "a"}'
    ) -> dict[str, str]:
        """Return a table of strings. None of them may be empty."""
        table: dict[str, Any] = self.value(key, dict, expected, default)
        for name, text in table.items():
            if not isinstance(text, str) or not text:
                raise self.wrong(f"{key}.{name}", "a string that is not empty", text)
        return dict(table)

    def table(self, place: str, value: object, *known: str, expected: str) -> Options:
        """Return the options of a nested table.

        Args:
            place: The key of the nested table in this one, or a place such as ``rules[0]``.
            value: The nested table itself.
            known: The names of all options of the nested table.
            expected: What would be right, if `value` is not a table.
        """
        if not isinstance(value, Mapping):
            raise self.wrong(place, expected, value)
        return Options(cast("Mapping[str, Any]", value), *known, within=self._prefix + place)


def compile_patterns(key: str, texts: Iterable[str]) -> tuple[re.Pattern[str], ...]:
    """Return regular expressions. Raises ConfigError for `key` if one of `texts` is something else, or is empty."""
    patterns: list[re.Pattern[str]] = []
    for text in texts:
        if not text:  # what a template makes of a variable that is not set; it would match everything
            raise ConfigError(key, "regular expressions that are not empty")
        try:
            patterns.append(re.compile(text))
        except re.error as error:
            raise ConfigError(key, f"regular expressions, not {text!r}: {error}") from error
    return tuple(patterns)


def unknown_name(what: str, name: str, known: Collection[str], listed_in: str = "") -> str:
    """Return the text for a name that does not exist: the most similar name, and all names that exist.

    If a document lists the names, it is named instead of them.
    """
    if not known:
        return f"unknown {what}; there are none"
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    names = f"{listed_in} lists all {len(known)}" if listed_in else f"there are: {', '.join(known)}"
    return f"unknown {what}; {hint}{names}"


def _shown(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
