"""The watchdog, on loops that make progress, are busy or blocked, and on processes that were stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from peili.mirror.support.watchdog import Watchdog

pytestmark = pytest.mark.anyio

PROGRAM = """
import asyncio, os, time
from peili.mirror.support.watchdog import Watchdog

async def main():
    async with Watchdog({timeout}):
        print("up", flush=True)
        {body}

asyncio.run(main())
print("done", flush=True)
"""


def start(body: str, *, timeout: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(timeout=timeout, body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_a_process_with_a_blocked_loop_ends_and_prints_its_stacks() -> None:
    process = start("time.sleep(600)", timeout=0.5)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGABRT
    assert "peili: the event loop has not moved for 0.5 seconds" in err
    assert "in main" in err  # the stack of the loop's thread, too


def test_a_reader_of_stderr_that_hangs_does_not_keep_it_alive() -> None:
    process = start("while True: os.write(2, b'x' * 4096)", timeout=0.3)
    with process:
        assert process.wait(60) == -signal.SIGABRT


def test_a_stopped_process_does_not_count_as_blocked() -> None:
    process = start("await asyncio.sleep(1)", timeout=1.5)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        time.sleep(2.5)  # the time itself is what is tested
    finally:
        os.kill(process.pid, signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "done\n", "")


async def test_a_busy_loop_that_makes_progress_is_not_stopped() -> None:
    stalls: list[None] = []
    async with Watchdog(2.5, on_stall=lambda: stalls.append(None)):
        for _ in range(10):
            time.sleep(0.3)  # noqa: ASYNC251 - a loop that is kept busy is what is tested
            await asyncio.sleep(0)
    assert stalls == []


async def test_each_stall_is_reported_once_in_another_thread() -> None:
    stalls: list[threading.Thread] = []
    async with Watchdog(0.6, on_stall=lambda: stalls.append(threading.current_thread())):
        for stall in (1, 2):
            deadline = time.monotonic() + 30
            while len(stalls) < stall and time.monotonic() < deadline:
                time.sleep(0.01)  # noqa: ASYNC251 - a stalled loop is what is tested
            time.sleep(1.2)  # noqa: ASYNC251 - time for another one
            assert len(stalls) == stall
            await asyncio.sleep(0.1)
    assert threading.main_thread() not in stalls


async def test_notify_is_called_while_the_loop_makes_progress() -> None:
    beats: asyncio.Queue[None] = asyncio.Queue()
    async with Watchdog(60, interval=0.01, notify=lambda: beats.put_nowait(None)), asyncio.timeout(60):
        for _ in range(5):
            await beats.get()
    while not beats.empty():
        beats.get_nowait()
    await asyncio.sleep(0.05)  # five more, were they not at an end
    assert beats.empty()


async def test_the_watchdog_leaves_no_thread_behind_and_can_be_entered_again() -> None:
    before = threading.active_count()
    watchdog = Watchdog(60)
    for _ in range(2):
        async with watchdog:
            assert threading.active_count() == before + 1
        assert threading.active_count() == before


def test_closing_the_loop_ends_the_thread() -> None:
    before = threading.active_count()
    stalls: list[None] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(Watchdog(5.0, on_stall=lambda: stalls.append(None)).__aenter__())
    loop.close()
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert stalls == []


@pytest.mark.parametrize("times", [(0, None), (-1, None), (float("nan"), None), (1, 0)])
async def test_times_that_are_not_above_zero_are_refused(times: tuple[float, float | None]) -> None:
    with pytest.raises(ValueError, match="times must be above zero"):
        Watchdog(times[0], interval=times[1])
