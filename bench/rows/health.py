"""Measures the cost of faulty holders, for each kind of fault.

A pull of six blobs from one honest holder and eight holders with the same fault is compared with a pull from the honest
holder alone. The honest holder answers 30 ms later than the others.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from tests.lab.processes import CommandFailed, wait_for
from tests.mirror.relay.faults import FAULTS

from bench import budgets
from bench.holders import blobs
from bench.measure import SECONDS, Row, take_turns
from bench.mirrors import MEMORY_STORE, peili, static_router
from bench.processes import running
from bench.setting import MIB, REGISTRY, REPOSITORY, Setting
from peili.mirror import Digest

GROUP = "health"
_HONEST_DELAY = 0.03
"""Seconds that the honest holder waits before it answers."""
_SIZE = MIB
_COUNT = 6


def rows(setting: Setting) -> Iterator[Row]:
    """Yield one row for each kind of fault."""
    faulty = setting.pick(8, 3)
    digests = [*blobs(_SIZE, _COUNT)]
    for fault in FAULTS if not setting.quick else [*FAULTS][:2]:
        with _holders(setting, fault, faulty) as urls:
            sides = [partial(_pull, setting, digests, urls), partial(_pull, setting, digests, urls[-1:])]
            ours, alone = take_turns(sides, rounds=setting.few_rounds, warm_up=False)
        what = f"pull {_COUNT} blobs, {faulty} of {faulty + 1} holders faulty: {fault}"
        yield Row(GROUP, what, SECONDS, ours, "the honest one alone", alone, budgets.FAULTY_HOLDERS)


@contextmanager
def _holders(setting: Setting, fault: str, faulty: int) -> Generator[Sequence[str]]:
    """Run the holders. Yields the URLs of the faulty holders, and of the honest one at the end."""
    file = setting.new("urls")
    job = {
        "size": _SIZE,
        "count": _COUNT,
        "faulty": faulty,
        "fault": fault,
        "late": _HONEST_DELAY,
        "urls": str(file),
    }
    with running([sys.executable, "-m", "bench.holders", json.dumps(job)], setting.new("log")) as process:
        wait_for(lambda: file.exists() or not process.is_running, "the holders listen")
        if not file.exists():
            raise CommandFailed(f"the holders do not listen:\n{process.output()}")
        urls: list[str] = json.loads(file.read_text())
        yield urls


def _pull(setting: Setting, digests: Sequence[Digest], urls: Sequence[str]) -> float:
    """Start a mirror, and return the seconds that it takes to relay all blobs, one after the other."""
    with peili(setting.new("log"), *MEMORY_STORE, *static_router(urls)) as host:
        started = time.monotonic()
        for digest in digests:
            _get(host.local, digest)
        return time.monotonic() - started


def _get(port: int, digest: Digest) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("GET", f"/v2/{REPOSITORY}/blobs/{digest}?ns={REGISTRY}")
        response = connection.getresponse()
        if response.status != 200 or Digest.of(response.read()) != digest:
            raise RuntimeError(f"{digest}: the status is {response.status}, or the content is wrong")
    finally:
        connection.close()
