"""Writes docs/configuration.md: each key with its default, its unit and an example. `make docs` runs it.

    python -m scripts.configuration_page [--check]

The code that reads the configuration says which keys exist, what is right for them, and their defaults: this script
lets it read the examples in configuration.toml, and notes what it asks for. The meanings are the comments there, and
those of `Limits`. With --check, nothing is written. The exit code is 1 if the page is out of date.
"""

from __future__ import annotations

import inspect
import re
import sys
import tomllib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from scripts.generated import ROOT, write_or_check

from peili.adapters.standalone import settings, upstreams
from peili.adapters.standalone.door_options import TLSOptions
from peili.adapters.standalone.parsing import SECTIONS, known_keys, parse_config, parse_plugin
from peili.mirror import RESOLVERS, ROUTERS, STORES, Limits, Options, Plugins
from peili.mirror.limits import UNLIMITED
from peili.mirror.support.options import MISSING

PAGE = ROOT / "docs/configuration.md"
EXAMPLES = Path(__file__).with_name("configuration.toml")
GROUPS = {"store": STORES, "router": ROUTERS, "resolver": RESOLVERS}
WITHOUT_KEYS = frozenset({"memory", "push", "defer", "local", "peers"})
"""The built-in plug-ins that have no options."""
INTRODUCTION = """\
# Configuration

<!-- `make docs` writes this page from the code and from scripts/configuration.toml. -->

Every key of `peili.toml`. `peili serve --check` names each mistake of a file. [running.md](running.md) says which file
is read, and explains the routers. A key can also be an environment variable, `PEILI_SECTION__KEY=VALUE`, or a flag,
`--set SECTION.KEY=VALUE`; flags come before variables, and variables before the file. A value of a variable or a flag
is TOML, or a string if it is not. In a flag, a name with dots has quotes: `--set 'upstream."registry.corp".url=…'`.
Times are in seconds, sizes in bytes."""
_MIB = 1 << 20
_SECONDS = ("_timeout", "_ttl", "_delay", "_window", "_heartbeat", "backoff_min", "backoff_max", "rest_max")
_BYTES = ("_memory", "_size", "_answer", "verify_ahead", "path_length")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the code asked for in one table: the keys that it knows, and of each the default and what is right."""

    known: tuple[str, ...]
    within: str
    keys: dict[str, tuple[Any, str]] = field(default_factory=dict[str, tuple[Any, str]])


@dataclass(frozen=True, slots=True)
class Row:
    """A key as it is on the page."""

    key: str
    default: str
    unit: str
    meaning: str
    example: str


@contextmanager
def recording() -> Generator[list[Asked]]:
    """Note what `Options` is asked for while the context lasts."""
    asked: list[Asked] = []
    init, value = Options.__init__, Options.value

    def noting_init(self: Options, config: Mapping[str, Any], *known: str, **places: str) -> None:
        asked.append(Asked(known, places.get("within", "")))
        self.__dict__["asked"] = asked[-1]
        init(self, config, *known, **places)

    def noting_value(self: Options, key: str, kind: Any, expected: str, *default: Any) -> Any:
        self.__dict__["asked"].keys[key] = (default[0] if default else MISSING, expected)
        return value(self, key, kind, expected, *default)

    Options.__init__, Options.value = noting_init, noting_value  # type: ignore[method-assign, assignment]
    try:
        yield asked
    finally:
        Options.__init__, Options.value = init, value  # type: ignore[method-assign]


class Examples:
    """The examples in configuration.toml, with the comment of each."""

    def __init__(self) -> None:
        text = EXAMPLES.read_text(encoding="utf-8")
        self.tables: dict[str, Any] = tomllib.loads(text)
        self._lines: dict[str, tuple[str, str]] = {}
        section = ""
        for line in text.splitlines():
            if line.startswith("["):
                section = line.strip('[]"')
            elif match := re.fullmatch(r"([\w-]+) = (.+?)  # (.+)", line):
                self._lines[f"{section}.{match[1]}"] = (match[2], match[3])
        self._used: set[str] = set()

    def take(self, name: str) -> tuple[str, str]:
        """Return the example and the meaning of a key. Raises KeyError."""
        self._used.add(name)
        return self._lines[name]

    def has(self, name: str) -> bool:
        return name in self._lines

    def unused(self) -> set[str]:
        """Return the examples of keys that do not exist."""
        return set(self._lines) - self._used


def page() -> str:
    """Return the whole page. Raises KeyError for a key without an example, and ValueError for the reverse."""
    examples = Examples()
    parts = [INTRODUCTION]
    for section in SECTIONS:
        if section == "upstream":
            parts.append(_table('[upstream."REGISTRY"]', _upstream_rows(examples)))
        elif section == "limits":
            parts.append(_table("[limits]", _limit_rows(examples)))
        else:
            parts.append(_table(f"[{section}]", _section_rows(section, examples)))
        if section == "peer":
            parts.append(_table("[peer.tls]", _tls_rows(examples)))
        parts += [
            _table(f'[{section}] kind = "{kind}"', _plugin_rows(section, kind, examples))
            for kind in _kinds(section, examples)
        ]
    if examples.unused():
        raise ValueError(f"examples of keys that do not exist: {', '.join(sorted(examples.unused()))}")
    return "\n\n".join(parts) + "\n"


def _section_rows(section: str, examples: Examples) -> list[Row]:
    known = known_keys()[section]
    with recording() as asked:
        if section in GROUPS:
            parse_plugin(section, {})
        else:
            parse_config({})
    keys = {
        key: each for table in asked for key, each in table.keys.items() if section in GROUPS or table.known == known
    }
    for key in known:  # each example is right by itself
        parse_config(settings.merge(settings.from_flags([f"{section}.{key}={examples.take(f'{section}.{key}')[0]}"])))
    return [_row(key, keys.get(key, (None, "")), f"{section}.{key}", examples) for key in known]


def _tls_rows(examples: Examples) -> list[Row]:
    with recording() as asked:
        parse_config({"peer": {"tls": settings.Setting(examples.tables["peer.tls"], "example")}})
    table = next(each for each in asked if each.within == "tls")
    known = tuple(each.name for each in fields(TLSOptions))
    return [_row(key, table.keys[key], f"peer.tls.{key}", examples) for key in known]


def _upstream_rows(examples: Examples) -> list[Row]:
    ((registry, table),) = examples.tables["upstream"].items()
    with recording() as asked:
        parse_config({"upstream": {registry: settings.Setting({"ca": table["ca"]}, "example")}})
    found = next(each for each in asked if each.known == upstreams.KEYS)
    found.keys["url"] = (None, "")  # its default depends on the registry
    return [_row(key, found.keys[key], f'upstream."{registry}.{key}', examples) for key in upstreams.KEYS]


def _limit_rows(examples: Examples) -> list[Row]:
    comments = dict(
        re.findall(r"^    (\w+): (?:int|float) = [^#\n]+  # (.+)$", inspect.getsource(Limits), re.MULTILINE)
    )
    rows: list[Row] = []
    for each in fields(Limits):
        name, default = f"limits.{each.name}", each.default
        if examples.has(name):
            example, meaning = examples.take(name)
        else:
            changed: Any = 16 * _MIB if default == UNLIMITED else 2 * default  # type: ignore[operator]
            example, meaning = _toml(changed), comments[each.name]
        rows.append(Row(each.name, _readable(default, each.name), _limit_unit(each.name), meaning, example))
        Limits(**{each.name: tomllib.loads(f"value = {example}")["value"]})
    return rows


def _limit_unit(name: str) -> str:
    if "_rate" in name and not name.endswith(_SECONDS):
        return "bytes/s"
    if name.endswith(_BYTES):
        return "bytes"
    return "s" if name.endswith(_SECONDS) else "number"


def _kinds(section: str, examples: Examples) -> list[str]:
    if section not in GROUPS:
        return []
    kinds = [kind for kind in Plugins().names(GROUPS[section]) if kind not in WITHOUT_KEYS]
    return [kind for kind in examples.tables[section] if kind != "kind" and kind in kinds] + [
        kind for kind in kinds if kind not in examples.tables[section]
    ]


def _plugin_rows(section: str, kind: str, examples: Examples) -> list[Row]:
    keys: dict[str, tuple[Any, str]] = {}
    known: tuple[str, ...] = ()
    for sample in examples.tables[section][kind]:
        with recording() as asked:
            getattr(Plugins(), section)(kind, sample)
        table = next(each for each in asked if not each.within)
        known = table.known
        keys |= {key: each for key, each in table.keys.items() if key not in keys or key in sample}
    return [_row(key, keys[key], f"{section}.{kind}.{key}", examples) for key in known]


def _row(key: str, asked: tuple[Any, str], name: str, examples: Examples) -> Row:
    default, expected = asked
    example, meaning = examples.take(name)
    shown = "required" if default is MISSING else _readable(default, key)
    right = expected.partition(", as in ")[0].partition(", such as ")[0]
    is_told = not right or right in {"a string that is not empty", "true or false", "a path"} or right in meaning
    unit = "s" if right.startswith(("seconds", "a number of seconds")) else "-"
    return Row(key, shown, unit, meaning if is_told or unit == "s" else f"{meaning} ({right})", example)


def _readable(value: Any, name: str) -> str:
    if value is None or value in ((), {}, [], ""):
        return "-"
    if value == UNLIMITED:
        return "unlimited"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1024 and name.endswith((*_BYTES, "_rate")):
        return f"{value // _MIB} MiB" if value % _MIB == 0 else f"{value // 1024} KiB"
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str | Path) else str(value)


def _table(title: str, rows: Sequence[Row]) -> str:
    head = "| key | default | unit | meaning | example |\n|---|---|---|---|---|\n"
    lines = [
        f"| `{each.key}` | {each.default} | {each.unit} | {_cell(each.meaning)} | `{each.example}` |" for each in rows
    ]
    return f"## `{title}`\n\n{head}" + "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page, __doc__))
