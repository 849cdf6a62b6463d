"""Measures cold starts in which something goes wrong. bench/faults.py has the faults, and what is expected of each.

The reference of each time is the same cold start without the fault. Every fault has a laboratory of its own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench.cold_start import cold_start
from bench.drill import Drill, Outcome
from bench.faults import FAULTS, Fault, without
from bench.measure import COPIES, HOSTS, SECONDS, AtMost, AtMostMore, RatioOf, Row
from bench.setting import MIB, Setting

GROUP = "faults"
LOGS = Path(__file__).parent.parent / "results" / "faults"
"""The logs of the last run of each fault after which a survivor did not have the image. They are not in git."""
_AGAINST = "without the fault"


def rows(setting: Setting) -> Iterator[Row]:
    """Yield rows of each fault.

    Raises:
        RuntimeError: The machine can't limit links, or no fault is meant.
    """
    for fault in chosen_faults(setting):
        yield from _fault_rows(setting, fault)


def chosen_faults(setting: Setting) -> Sequence[Fault]:
    """Return the faults whose description has the text of ``--only``. Raises RuntimeError if there is none."""
    faults = setting.pick(FAULTS, [replace(FAULTS[0], layers=(MIB,))])
    chosen = [each for each in faults if setting.only in each.what]
    if not chosen:
        raise RuntimeError(f"no fault has {setting.only!r} in its description")
    return chosen


def _fault_rows(setting: Setting, fault: Fault) -> Iterator[Row]:
    calm, faulty = run(setting, without(fault)), run(setting, fault)
    for host, reason in faulty.failed:
        print(f"bench: {fault.what}: a pull of {host} failed: {reason}", file=sys.stderr, flush=True)
    yield Row(GROUP, f"{fault.what}: copies from upstream", COPIES, (faulty.copies,), budget=AtMost(fault.copies))
    last = AtMostMore(fault.later) if fault.times is None else RatioOf(round(1 / fault.times, 2))
    what = "the last pull fails" if fault.fails else "the last survivor has it"
    yield Row(GROUP, f"{fault.what}: {what}", SECONDS, (faulty.last,), _AGAINST, (calm.last,), last)
    if not fault.fails:
        missing = len(faulty.without)
        yield Row(GROUP, f"{fault.what}: survivors without the image", HOSTS, (missing,), budget=AtMost(0))


def run(setting: Setting, fault: Fault) -> Outcome:
    """Run one fault in a new laboratory. If a survivor does not have the image, the logs are in `LOGS` afterwards."""
    with ExitStack() as stack:
        scene = stack.enter_context(cold_start(setting.folder, setting.pick(8, 3), fault.links))
        scene.with_peili(groups=fault.groups, log_level="debug")
        drill = Drill(scene, fault.layers, stack)
        fault.act(drill)
        outcome = drill.finish()
        if outcome.without and not fault.fails:
            folder = LOGS / re.sub(r"[^a-z0-9]+", "-", fault.what.lower())
            print(f"bench: {fault.what}: {outcome.without}; logs are in {folder}", file=sys.stderr, flush=True)
            drill.keep_logs(folder)
        return outcome
