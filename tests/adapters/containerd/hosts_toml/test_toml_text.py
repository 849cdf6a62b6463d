"""What tomllib reads from a text is the document that it was made of, and a person can read it, too."""

from __future__ import annotations

import datetime as dt
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peili.adapters.containerd.hosts_toml.toml_text import format_document, format_key, format_value

TEXTS = {
    "values, then tables": (
        {"host": {"http://a:1": {"header": {"x": "y"}, "capabilities": ["pull"]}, "b": {}}, "server": "s"},
        (
            'server = "s"\n\n[host."http://a:1"]\ncapabilities = ["pull"]\n\n'
            '[host."http://a:1".header]\nx = "y"\n\n[host.b]'
        ),
    ),
    "arrays of tables": (
        {"a": [{"x": 1}, {"y": {"z": True}}, {}]},
        "\n[[a]]\nx = 1\n\n[[a]]\n\n[a.y]\nz = true\n\n[[a]]",
    ),
    "arrays": ({"a": [], "b": [[1, 2.5], [{"c": 1}, "d"]]}, 'a = []\nb = [[1, 2.5], [{c = 1}, "d"]]'),
    "escapes": ({"": '"\\\n\x7f\u2028é'}, '"" = "\\"\\\\\\n\\u007f\u2028é"'),
}


@pytest.mark.parametrize(("document", "text"), TEXTS.values(), ids=TEXTS)
def test_a_document_is_written_as_a_person_writes_it(document: dict[str, Any], text: str) -> None:
    assert format_document(document) == text.removeprefix("\n")
    assert tomllib.loads(format_document(document)) == document


_STRINGS = st.text(st.characters(codec="utf-8"))
_VALUES = st.one_of(
    _STRINGS,
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False),
    st.booleans(),
    st.datetimes(),
    st.datetimes(timezones=st.just(dt.UTC)),
    st.dates(),
    st.times(),
)
_TABLES = st.dictionaries(
    _STRINGS,
    st.recursive(_VALUES, lambda inner: st.one_of(st.lists(inner), st.dictionaries(_STRINGS, inner)), max_leaves=12),
)


@given(_TABLES)
def test_every_document_is_read_as_it_was(document: dict[str, Any]) -> None:
    assert tomllib.loads(format_document(document)) == document


@given(_STRINGS, _VALUES)
def test_a_key_with_its_value_is_one_line_that_is_read_as_it_was(key: str, value: object) -> None:
    line = f"{format_key(key)} = {format_value(value)}"
    assert "\n" not in line
    assert tomllib.loads(line) == {key: value}
