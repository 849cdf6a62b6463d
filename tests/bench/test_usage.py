"""The CPU time and memory of processes, as the kernel counts them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from bench.usage import cpu_seconds, forget_peak, memory, parse_stat
from tests.lab.processes import Process, wait_for


def test_a_process_name_may_have_brackets_and_spaces() -> None:
    fields = " ".join(map(str, range(5, 53)))
    stat = parse_stat(f"77 (a ) (b) c) S 42 {fields}\n")
    assert stat.parent == 42
    assert stat.cpu == pytest.approx((14 + 15 + 16 + 17) / os.sysconf("SC_CLK_TCK"))


def test_running_and_ended_children_count(tmp_path: Path) -> None:
    burn = "import time; end = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    python = shlex.quote(sys.executable)
    script = f"{python} -c '{burn}'; {python} -c '{burn}\nprint(1, flush=True); input()'; :"
    child = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"1\n"
        assert cpu_seconds([child.pid]) >= 0.35
        assert cpu_seconds([child.pid, child.pid]) < 2 * cpu_seconds([child.pid])
    finally:
        child.communicate(b"\n")


def test_an_ended_process_costs_nothing() -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()
    assert cpu_seconds([child.pid]) == 0


def test_a_peak_lasts_until_it_is_reset(tmp_path: Path) -> None:
    program = "import time; data = bytearray(64 << 20); del data; print(1, flush=True); time.sleep(600)"
    process = Process([sys.executable, "-c", program], tmp_path / "log")
    try:
        wait_for(lambda: process.output() == "1\n", "the memory was used")
        taken = memory(process.pid)
        assert 0 < taken.proportional <= taken.resident < 64 < taken.peak
        forget_peak(process.pid)
        assert memory(process.pid).peak < 64
    finally:
        process.kill()
