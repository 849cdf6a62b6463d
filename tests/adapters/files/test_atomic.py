"""Only regular files are read and replaced: what else a link leads to belongs to other programs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from peili.adapters.files import atomic


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """A link to a FIFO. It stands for ``/dev/null``, to which links lead that switch a file off."""
    os.mkfifo(tmp_path / "fifo")
    path = tmp_path / "hosts.toml"
    path.symlink_to("fifo")
    return path


def test_what_is_no_regular_file_is_not_replaced(link: Path, tmp_path: Path) -> None:
    with pytest.raises(atomic.UnusualFile, match="not a regular file"):
        atomic.replace(link, b"new")
    assert stat.S_ISFIFO(link.stat().st_mode)
    assert {each.name for each in tmp_path.iterdir()} == {"fifo", "hosts.toml"}


def test_a_directory_is_neither_replaced_nor_read(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        atomic.replace(tmp_path, b"new")
    with pytest.raises(IsADirectoryError):
        atomic.read(tmp_path)


def test_reading_does_not_wait_for_another_program(link: Path) -> None:
    """Opening a FIFO for reading waits for a writer, by default."""
    with pytest.raises(atomic.UnusualFile, match="not a regular file"):
        atomic.read(link)


def test_a_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert atomic.read(file, 5) == b"12345"
    with pytest.raises(atomic.UnusualFile):
        atomic.read(file, 4)
    with pytest.raises(FileNotFoundError):
        atomic.read(tmp_path / "nothing")


def test_a_link_to_dev_null_is_empty(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(os.devnull)
    assert atomic.read(tmp_path / "link") == b""
