"""Reading the options of a plug-in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peili.mirror import ConfigError, Options

Read = Callable[[Options], object]

RIGHT: list[tuple[Any, Read, object]] = [
    ("a", lambda options: options.text("key"), "a"),
    (False, lambda options: options.boolean("key"), False),
    (7, lambda options: options.integer("key", minimum=7), 7),
    (7, lambda options: options.integer("key", maximum=7), 7),
    (1, lambda options: options.number("key"), 1.0),
    (0.5, lambda options: options.number("key", minimum=0.5), 0.5),
    ("b", lambda options: options.choice("key", ("a", "b")), "b"),
    ("a/b", lambda options: options.path("key"), Path("a/b")),
    (Path("/a"), lambda options: options.path("key", absolute=True), Path("/a")),
    (["a", 1], lambda options: options.sequence("key", "a list"), ("a", 1)),
    (["a", "b"], lambda options: options.texts("key"), ("a", "b")),
    ([], lambda options: options.texts("key", empty=True), ()),
    ({"zone": "a"}, lambda options: options.mapping("key"), {"zone": "a"}),
]


@pytest.mark.parametrize(("value", "read", "result"), RIGHT)
def test_a_right_value_is_returned_with_its_type(value: Any, read: Read, result: object) -> None:
    found = read(Options({"key": value}, "key"))
    assert (found, type(found)) == (result, type(result))


WRONG: list[tuple[Any, Read, str]] = [
    (7, lambda options: options.text("key"), "a string that is not empty, not 7"),
    ("", lambda options: options.text("key"), "a string that is not empty, not ''"),
    ("", lambda options: options.text("key", expected="a name"), "a name, not ''"),
    ("no", lambda options: options.boolean("key"), "true or false, not 'no'"),
    (1, lambda options: options.boolean("key"), "true or false, not 1"),
    (True, lambda options: options.integer("key"), f"a whole number from 0 to {2**53}, not true"),
    (1.0, lambda options: options.integer("key", maximum=5), "a whole number from 0 to 5, not 1.0"),
    (0, lambda options: options.integer("key", minimum=1, maximum=5), "a whole number from 1 to 5, not 0"),
    (6, lambda options: options.integer("key", minimum=1, maximum=5), "a whole number from 1 to 5, not 6"),
    (False, lambda options: options.number("key"), "a number, 0 or more, not false"),
    ("1", lambda options: options.number("key"), "a number, 0 or more, not '1'"),
    (float("nan"), lambda options: options.number("key"), "a number, 0 or more, not nan"),
    (float("inf"), lambda options: options.number("key"), "a number, 0 or more, not inf"),
    (1e300, lambda options: options.number("key"), "a number up to 1000000000, not 1e+300"),
    (1 << 1100, lambda options: options.number("key", maximum=5.0), f"a number up to 5, not {str(1 << 1100)[:79]}…"),
    (0.04, lambda options: options.number("key", minimum=0.05), "a number, 0.05 or more, not 0.04"),
    ("c", lambda options: options.choice("key", ("a", "b")), "one of a, b, not 'c'"),
    ({}, lambda options: options.choice("key", ("a", "b")), "one of a, b, not {}"),
    ("", lambda options: options.path("key"), "a path, not ''"),
    (7, lambda options: options.path("key"), "a path, not 7"),
    ("a\0", lambda options: options.path("key"), "a path, not 'a\\x00'"),
    ("a", lambda options: options.path("key", absolute=True), "an absolute path, not 'a'"),
    ("a", lambda options: options.sequence("key", "a list"), "a list, not 'a'"),
    ([], lambda options: options.sequence("key", "a list"), "a list, not []"),
    ([1], lambda options: options.texts("key"), "a list of strings, not [1]"),
    ([], lambda options: options.texts("key"), "a list of strings, not []"),
    (["a"], lambda options: options.mapping("key"), "a table of strings, as in {zone = \"a\"}, not ['a']"),
    ("x" * 200, lambda options: options.choice("key", ("a",)), f"one of a, not '{'x' * 78}…"),
]


@pytest.mark.parametrize(("value", "read", "expected"), WRONG)
def test_a_wrong_value_is_answered_with_what_would_be_right(value: Any, read: Read, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(Options({"key": value}, "key"))
    assert (raised.value.key, raised.value.expected) == ("key", expected)
    assert len(str(raised.value).splitlines()) == 1


DEFAULTS: list[tuple[Read, object]] = [
    (lambda options: options.text("key", None), None),
    (lambda options: options.text("key", ""), ""),
    (lambda options: options.boolean("key", default=False), False),
    (lambda options: options.integer("key", 0, minimum=1), 0),
    (lambda options: options.number("key", None), None),
    (lambda options: options.choice("key", ("a",), "z"), "z"),
    (lambda options: options.path("key", None), None),
    (lambda options: options.sequence("key", "a list", ()), ()),
    (lambda options: options.texts("key", ["a"]), ("a",)),
    (lambda options: options.mapping("key", {}), {}),
]


@pytest.mark.parametrize(("read", "default"), DEFAULTS)
def test_a_missing_option_has_its_default_as_it_is(read: Read, default: object) -> None:
    assert read(Options({}, "key")) == default


@pytest.mark.parametrize("read", [read for _, read, _ in RIGHT])
def test_a_missing_option_without_a_default_is_wrong(read: Read) -> None:
    options = Options({"other": 1}, "other")
    with pytest.raises(ConfigError, match=r"^key: (?!.*, not)") as raised:
        read(options)
    assert raised.value.key == "key"


def test_an_unknown_option_is_answered_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"^pth: unknown option; did you mean path\? there are: path, verify$"):
        Options({"pth": 1}, "path", "verify")
    with pytest.raises(ConfigError, match=r"^other: unknown option; there are: path, verify$"):
        Options({"other": 1}, "path", "verify")
    with pytest.raises(ConfigError, match=r"^path: unknown option; there are none$"):
        Options({"path": 1})


def test_keys_of_a_nested_table_are_named_in_full() -> None:
    options = Options({"rules": [{"use": 1}]}, "rules")
    (value,) = options.sequence("rules", "a list")
    rule = options.table("rules[0]", value, "use", expected="a table")
    with pytest.raises(ConfigError, match=r"^rules\[0\]\.use: a string that is not empty, not 1$"):
        rule.text("use")
    with pytest.raises(ConfigError, match=r"^rules\[0\]\.labels\.zone: a string that is not empty, not 1$"):
        options.table("rules[0]", {"labels": {"zone": 1}}, "labels", expected="a table").mapping("labels")
    with pytest.raises(ConfigError, match=r"^rules\[0\]: a table, not 7$"):
        options.table("rules[0]", 7, "use", expected="a table")
    with pytest.raises(ConfigError, match=r"^rules\[0\]\.ues: unknown option; did you mean use\? there are: use$"):
        options.table("rules[0]", {"ues": 1}, "use", expected="a table")
