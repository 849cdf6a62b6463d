"""What sick holders cost: a pull of six blobs from one honest holder and eight that are all sick in the same way, for
each sickness, held against the pull from the honest one alone. It answers 30 ms later than the others.
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
from tests.mirror.relay.sicknesses import SICK

from bench import budgets
from bench.holders import blobs
from bench.measure import SECONDS, Row, take_turns
from bench.mirrors import MEMORY_STORE, peili, static_router
from bench.processes import running
from bench.setting import MIB, REGISTRY, REPOSITORY, Setting
from peili.mirror import Digest

GROUP = "health"
_LATE = 0.03
"""Seconds."""
_SIZE = MIB
_COUNT = 6


def rows(setting: Setting) -> Iterator[Row]:
    """One row for each sickness."""
    sick = setting.pick(8, 3)
    digests = [*blobs(_SIZE, _COUNT)]
    for sickness in SICK if not setting.quick else [*SICK][:2]:
        with _holders(setting, sickness, sick) as urls:
            sides = [partial(_pull, setting, digests, urls), partial(_pull, setting, digests, urls[-1:])]
            ours, alone = take_turns(sides, rounds=setting.few_rounds, warm_up=False)
        what = f"pull {_COUNT} blobs, {sick} of {sick + 1} holders sick: {sickness}"
        yield Row(GROUP, what, SECONDS, ours, "the honest one alone", alone, budgets.SICK)


@contextmanager
def _holders(setting: Setting, sickness: str, sick: int) -> Generator[Sequence[str]]:
    """The URLs of the sick ones, and of an honest one at the end."""
    told = setting.new("urls")
    job = {"size": _SIZE, "count": _COUNT, "sick": sick, "sickness": sickness, "late": _LATE, "told": str(told)}
    with running([sys.executable, "-m", "bench.holders", json.dumps(job)], setting.new("log")) as process:
        wait_for(lambda: told.exists() or not process.is_running, "the holders listen")
        if not told.exists():
            raise CommandFailed(f"they do not listen:\n{process.output()}")
        urls: list[str] = json.loads(told.read_text())
        yield urls


def _pull(setting: Setting, digests: Sequence[Digest], urls: Sequence[str]) -> float:
    """The seconds that a mirror which has just started takes to get all of them, one after the other."""
    with peili(setting.new("log"), *MEMORY_STORE, *static_router(urls)) as host:
        began = time.monotonic()
        for digest in digests:
            _get(host.local, digest)
        return time.monotonic() - began


def _get(port: int, digest: Digest) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("GET", f"/v2/{REPOSITORY}/blobs/{digest}?ns={REGISTRY}")
        answer = connection.getresponse()
        if answer.status != 200 or Digest.of(answer.read()) != digest:
            raise RuntimeError(f"{digest} was answered with {answer.status}, or wrong")
    finally:
        connection.close()
