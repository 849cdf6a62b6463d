"""Where a table can be inserted into a TOML text, and which hosts have a table header in it."""

from __future__ import annotations

import pytest

from peili.adapters.containerd.hosts_toml.toml_subset import first_table_offset, parse_tables

TEXTS: dict[str, tuple[str, list[str]]] = {
    "nothing": ("|", []),
    "keys only": ("server = 'a'\n|", []),
    "no line end": ("server = 'a'|", []),
    "a table": ("server = 'a'\n\n|[host.'b']\n", ["b"]),
    "at once": ("|[host.'b']\nx = 1\n[host.'c']", ["b", "c"]),
    "indented": ("x = 1\n|  [host.'b']\n", ["b"]),
    "comments that belong to it": ("# top\n\nx = 1\n|# one\n  # two\n[host.b]\n", ["b"]),
    "comments that do not": ("# top\n\n|[host.b]\n", ["b"]),
    "a subtable first": ("|[host.'b'.header]\nx = '1'\n[host.'b']\n[host.'c']\n", ["b", "c"]),
    "the parent": ("|[host]\n'b' = {}\n[host.'c']\n", ["c"]),
    "others": ("|[header]\nx = '1'\n[[list]]\n[host.b] # comment\n", ["b"]),
    "dotted": ("host.'b'.x = 1\nhost.'c' = {}\n|[host.'d']\n", ["d"]),
    "a bracket in a list": ("x = [\n[1],\n  [2]]\n|[host.b]\n", ["b"]),
    "a header in a string": ("x = '''\n[host.x]\n'''\n|[host.b]\n", ["b"]),
    "a string's end as a comment": ("x = '''\n# '''\n|[host.b]\n", ["b"]),
    "a header in a table's string": ("|[host.b]\nx = '''\n[host.c]'''\n[host.d]", ["b", "d"]),
    "a header in a comment": ("# [host.x]\n\nx = 1\n|#[host.y]\n[host.b]\n", ["b"]),
    "CRLF": ("x = 1\r\n|# comment\r\n[host.b]\r\n", ["b"]),
}


@pytest.mark.parametrize(("marked", "hosts"), TEXTS.values(), ids=TEXTS)
def test_the_first_table_begins_below_the_keys_and_above_its_own_comments(marked: str, hosts: list[str]) -> None:
    text = marked.replace("|", "")
    assert first_table_offset(text) == marked.index("|")
    headers = [each.header for each in parse_tables(text)]
    assert list(dict.fromkeys(header[1] for header in headers if header[:1] == ("host",) and header[1:])) == hosts
