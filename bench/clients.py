"""This side of the load: worker processes that are given jobs, and what they found. What they do is bench/load.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tests.lab.processes import ENVIRONMENT, die_with_parent

from bench.measure import Busy
from peili.mirror.oci.media_types import OCI_INDEX, OCI_MANIFEST


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked for: a path at a port on loopback, and with which certificates (files: ca, cert, key) if any."""

    port: int
    path: str
    tls: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """Some transfers: all of their bytes, and the seconds from the first request to the last byte."""

    size: int
    seconds: float
    client: float
    """Of a second, how much the busiest client was computing: near 1, it is the client that was measured."""

    @property
    def rate(self) -> float:
        """MB/s."""
        return self.size / self.seconds / 1e6


@dataclass(frozen=True, slots=True)
class Answered:
    """Some requests: how many, and how many a second, and how long they took in milliseconds."""

    count: int
    rate: float
    median: float
    p99: float
    longest: float
    client: float
    """Of a second, how much the client was computing: near 1, it is the client that was measured."""


def busy(ours: Sequence[Answered], theirs: Sequence[Answered] = ()) -> Busy:
    """How busy the client was with either side."""
    return Busy(tuple(each.client for each in ours), tuple(each.client for each in theirs))


class Clients:
    """Load workers, one for each transfer that is to happen at the same time. They end with it."""

    def __init__(self, count: int = 1) -> None:
        self._workers = [_Worker() for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.close()

    def transfer(
        self,
        target: Target,
        *,
        clients: int = 1,
        times: int = 1,
        part: range | None = None,
        digest: str | None = None,
    ) -> Moved:
        """Let `clients` get `target` at the same time, each `times` times: the whole, or the bytes in `part`.

        Every transfer has a connection of its own. Raises RuntimeError when an answer is not what it should be.
        """
        job = {
            "job": "transfer",
            "port": target.port,
            "target": target.path,
            "tls": target.tls and dict(target.tls),
            "range": f"bytes={part.start}-{part.stop - 1}" if part is not None else None,
            "status": 200 if part is None else 206,
            "digest": digest,
            "times": times,
        }
        workers = self._workers[:clients]
        if len(workers) < clients:
            raise ValueError(f"{clients} transfers at the same time need as many workers, not {len(workers)}")
        for worker in workers:
            worker.start(job)
        found = [worker.finish() for worker in workers]
        seconds = max(each["ended"] for each in found) - min(each["began"] for each in found)
        return Moved(sum(each["size"] for each in found), seconds, max(each["cpu"] for each in found) / seconds)

    def requests(
        self,
        port: int,
        method: str,
        paths: Sequence[str],
        *,
        statuses: Sequence[int] = (200,),
        connections: int = 8,
        seconds: float | None = None,
    ) -> Answered:
        """Ask for `paths` on kept connections: each once, or over and over for `seconds`.

        What is answered with the first of `statuses` counts. Others than these raise RuntimeError.
        """
        job = {
            "job": "requests",
            "port": port,
            "method": method,
            "targets": list(paths),
            "statuses": list(statuses),
            "connections": connections,
            "seconds": seconds,
            "headers": {"Accept": f"{OCI_MANIFEST}, {OCI_INDEX}, */*"},  # docker-registry insists on the first two
        }
        [worker] = self._workers[:1]
        worker.start(job)
        found = worker.finish()
        count, took = found["count"], found["seconds"]
        median, p99, longest = (1e3 * found[each] for each in ("median", "p99", "longest"))
        return Answered(count, count / took, median, p99, longest, found["cpu"] / took)


class _Worker:
    """One process of bench/load.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            die_with_parent([sys.executable, "-m", "bench.load"]),
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, job: Mapping[str, Any]) -> None:
        """Begin it; `finish` has to follow."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def finish(self) -> dict[str, Any]:
        """What it found. Raises RuntimeError."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {"error": "the client has ended"}
        if "error" in found:
            raise RuntimeError(found["error"])
        return found

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        self._process.communicate()
