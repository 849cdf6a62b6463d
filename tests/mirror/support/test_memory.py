"""Memory outside of the heap: it is zero, takes nothing before it is written, and goes back to the system."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from peili.mirror.support.memory import new_memory

_SIZE = 64 << 20


@pytest.mark.parametrize("size", [0, 1, 5000, 3 << 20])
def test_it_has_the_size_and_is_zero_and_writable(size: int) -> None:
    memory = new_memory(size)
    assert memory == bytes(size)
    memory[:] = b"x" * size
    assert memory == b"x" * size


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_it_is_private_takes_nothing_until_it_is_written_and_goes_back() -> None:
    before = _private()
    memory = new_memory(_SIZE)
    assert _private() < before + _SIZE // 2
    memory[::4096] = b"x" * (_SIZE // 4096)
    assert _private() > before + _SIZE // 2
    del memory
    assert _private() < before + _SIZE // 2


def _private() -> int:
    """Return how many bytes of memory this process shares with nobody."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10
