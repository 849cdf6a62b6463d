"""peili's section of a hosts.toml is inserted and removed without a trace, whatever else the file contains."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peili.adapters.containerd.hosts_toml.directories import insert_section, split_section
from peili.adapters.files.editor import CannotEdit

BEGIN, END = b"# >>> peili hosts >>> hint", b"# <<< peili hosts <<<"

_LINES = st.lists(st.binary(max_size=8).filter(lambda line: not {*b"\r\n"} & {*line}), max_size=6)
_NEWLINES = st.sampled_from(["\n", "\r\n"])


@given(_LINES, _NEWLINES, st.booleans(), st.integers(0, 6), st.integers(0, 9))
def test_split_is_the_inverse_of_insert(lines: list[bytes], newline: str, ended: bool, index: int, made: int) -> None:
    end = newline.encode()
    before, after = end.join(lines[:index]), end.join(lines[index:])
    before += end if lines[index:] and lines[:index] else b""
    base = before + after + (end if ended and lines else b"")
    at = len(before) if lines[index:] else len(base)
    content = insert_section(base, at, "a\nb", created_levels=made, newline=newline)
    parts = split_section(content)
    assert (parts.rest, parts.has_section, parts.created_levels) == (base, True, made)
    assert not split_section(base).has_section


@pytest.mark.parametrize(
    ("content", "base"),
    [
        (b"a\n" + BEGIN + b"\nx\ny\n" + END + b"\nb\n", b"a\nb\n"),
        (b"a\n" + BEGIN + b"\n" + END + b"\nb\n", b"a\nb\n"),
        (b"  " + BEGIN + b"\nx\n\t" + END + b"  \nb", b"b"),
        (b"a\n" + BEGIN + b"\nx\n" + END, b"a"),
        (b"a\n" + BEGIN + b"\nx\n" + END + b"\n", b"a\n"),
        (b"a\r\n" + BEGIN + b"\r\nx\r\n" + END, b"a"),
        (b"a\r\n" + BEGIN + b"\r\nx\r\n" + END + b"\r\nb", b"a\r\nb"),
    ],
    ids=["edited", "emptied", "indented", "after a line without end", "after it got one", "CRLF, no end", "CRLF"],
)
def test_everything_between_the_comment_lines_is_the_section(content: bytes, base: bytes) -> None:
    assert split_section(content).rest == base


@pytest.mark.parametrize(
    "content",
    [BEGIN + b"\n", END + b"\n", END + b"\n" + BEGIN + b"\n", BEGIN + b"\n" + END + b"\n" + BEGIN + b"\n" + END],
    ids=["no end", "no begin", "wrong order", "twice"],
)
def test_damaged_comment_lines_are_an_error(content: bytes) -> None:
    with pytest.raises(CannotEdit, match="comment lines around peili's section are damaged"):
        split_section(b"server = 'x'\n" + content)
