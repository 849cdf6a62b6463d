"""Measures what it costs to be a home in a cluster of 1,000 members with 5,000 keys each.

Nothing is compared: the figures say how much of a host a home takes. bench/home.py loads one home.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from bench.home import Cost
from bench.measure import CPU_MILLISECONDS, CPU_SECONDS, MEBIBYTES, MEGABYTES, MESSAGES, MESSAGES_PER_SECOND, Row, Unit
from bench.setting import Setting

GROUP = "home"
_COLUMNS: Sequence[tuple[str, Unit, Callable[[Cost], float]]] = (
    ("memory of its records", MEBIBYTES, lambda cost: cost.memory),
    ("messages until it knows all keys", MESSAGES, lambda cost: cost.messages),
    ("… their size", MEGABYTES, lambda cost: cost.bytes),
    ("… CPU without HTTP", CPU_SECONDS, lambda cost: cost.seconds),
    ("messages afterwards", MESSAGES_PER_SECOND, lambda cost: cost.per_second),
    ("… CPU of one without HTTP", CPU_MILLISECONDS, lambda cost: cost.heartbeat),
)


def rows(setting: Setting) -> Iterator[Row]:
    """Yield rows for members that have the same keys, and for members whose keys are all different."""
    members, keys = setting.pick((1000, 5000), (100, 500))
    for same, what in ((True, "all the same"), (False, "all different")):
        costs = [_run(members, keys, same=same) for _ in range(setting.few_rounds)]
        for column, unit, figure in _COLUMNS:
            name = f"a home of {members:,} members, {keys:,} keys each, {what}: {column}"
            yield Row(GROUP, name, unit, tuple(map(figure, costs)))


def _run(members: int, keys: int, *, same: bool) -> Cost:
    """Load a home in a process of its own, so that its memory is that of the records."""
    job = json.dumps({"members": members, "keys": keys, "same": same})
    done = subprocess.run([sys.executable, "-m", "bench.home", job], check=True, capture_output=True, text=True)
    return Cost(**json.loads(done.stdout))
