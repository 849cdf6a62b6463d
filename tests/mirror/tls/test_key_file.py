"""Key files: their format, their mode, and how they are created."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from peili.mirror import ConfigError, PeiliError
from peili.mirror.tls.key_file import KEY_SIZE, create_key_file, format_key, new_key, parse_keys, read_keys

KEYS = st.binary(min_size=KEY_SIZE, max_size=KEY_SIZE)


def write(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


@given(st.lists(KEYS, min_size=1, max_size=8, unique=True), st.sampled_from(["\n", "\r\n", "\n\n", "\n# old\n", " \n"]))
def test_every_list_of_keys_is_read_as_it_was_written(keys: list[bytes], separator: str) -> None:
    assert parse_keys(separator.join(map(format_key, keys))) == tuple(keys)


@given(st.text())
@example("")
@example("# nothing but a comment")
@example(f"{format_key(bytes(32))[:-2]}B=")  # other text for the same bytes
@example(format_key(bytes(31)))
@example(format_key(bytes(33)))
@example("peili-key-v2:" + format_key(bytes(32)).partition(":")[2])
@example(f"{format_key(bytes(32))} {format_key(bytes(32))}")
def test_everything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
        parse_keys(text)


@given(KEYS, st.integers(0, 56), st.characters())
def test_a_key_with_one_other_character_is_another_key_or_refused(key: bytes, index: int, other: str) -> None:
    text = format_key(key)
    changed = text[:index] + other + text[index + 1 :]
    assume(changed.strip() != text)
    try:
        assert parse_keys(changed) != (key,)
    except ValueError as error:
        problem = str(error)
    else:
        return
    assert changed.strip() not in problem  # it is logged, and the text is nearly the key


def test_a_key_is_read_only_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        parse_keys(f"{format_key(bytes(32))}\n{format_key(bytes(32))}")
    with pytest.raises(ValueError, match="9 keys"):
        parse_keys("\n".join(new_key() for _ in range(9)))


def test_a_new_file_has_a_random_key_that_only_its_owner_reads(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        create_key_file(tmp_path / "one")
        os.umask(0)
        create_key_file(tmp_path / "two")
    finally:
        os.umask(before)
    for each in tmp_path.iterdir():
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
    [one], [two] = read_keys(tmp_path / "one"), read_keys(tmp_path / "two")
    assert len(one) == len(two) == KEY_SIZE
    assert one != two


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_nothing_is_overwritten(kind: str, tmp_path: Path) -> None:
    path, target = tmp_path / "key", tmp_path / "target"
    if kind != "file":
        path.symlink_to(target)
    if kind != "dangling link":
        path.write_text("mine")
    with pytest.raises(PeiliError, match=f"^{path} exists, and is not changed$"):
        create_key_file(path)
    assert not target.exists() or target.read_text() == "mine"


def test_a_file_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    with pytest.raises(PeiliError, match="missing/key can't be created: no such file or directory"):
        create_key_file(tmp_path / "missing/key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o666])
def test_a_file_that_others_may_use_is_refused(mode: int, tmp_path: Path) -> None:
    path = write(tmp_path / "key", new_key(), mode)
    with pytest.raises(ConfigError) as caught:
        read_keys(path)
    expected = f"other users may use {path}, which has mode {mode:04o}; run: chmod 600 {path}"
    assert str(caught.value) == f"shared_key_file: {expected}"
    path.chmod(0o400)
    assert read_keys(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it has no key; expected lines of the form peili-key-v1:"),
        (b"\xff\xfe", "expected lines of the form peili-key-v1:"),
        (b"hunter2\n", "line 1 is not a key"),
        (b"#\n" * 20_000, "it has no key"),
        (f"{format_key(bytes(32))}\nhunter2".encode(), "line 2 is not a key"),
    ],
)
def test_a_malformed_file_is_named_but_not_repeated(content: bytes, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path / "key", content)
    with pytest.raises(ConfigError) as caught:
        read_keys(path)
    assert f"{path} is not a key file" in str(caught.value)
    assert problem in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_what_is_not_a_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, problem in (
        (tmp_path / "pipe", "is not a file"),
        (tmp_path, "is not a file"),
        (tmp_path / "no", "no such"),
    ):
        with pytest.raises(ConfigError, match=problem):
            read_keys(path)
