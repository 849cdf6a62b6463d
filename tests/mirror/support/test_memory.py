"""Memory outside of the heap: it is zero, takes nothing before it is written, and goes back to the system.

Large memory may be in huge pages.
"""

from __future__ import annotations

import ctypes
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


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="this kernel has no transparent huge pages"
)
@pytest.mark.parametrize(("size", "may_be_huge"), [(3 << 20, True), (1 << 20, False)])
def test_large_memory_may_be_in_huge_pages(size: int, may_be_huge: bool) -> None:
    memory = new_memory(size)
    assert ("hg" in _flags(memory)) == may_be_huge


def _flags(memory: memoryview) -> list[str]:
    """Return what the kernel was told about the memory, in the words of proc(5)."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    is_found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_found = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif is_found and line.startswith("VmFlags:"):
            return line.split()[1:]
    pytest.fail("the kernel does not know the memory")


def _private() -> int:
    """Return how many bytes of memory this process shares with nobody."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10
