"""Load clients: worker processes that run jobs (bench/load.py), and the results of these jobs."""

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
from peili.mirror.oci.references import OCI_INDEX, OCI_MANIFEST


@dataclass(frozen=True, slots=True)
class Target:
    """A path at a port on loopback. `tls` has the files of the client's certificate by name: ca, cert and key."""

    port: int
    path: str
    tls: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class TransferResult:
    """The result of some transfers.

    Attributes:
        size: The bytes of all bodies.
        seconds: The time from the first request to the last byte.
        client: The part of the time in which the busiest client computed. Near 1, the client was the limit.
    """

    size: int
    seconds: float
    client: float

    @property
    def rate(self) -> float:
        """The bandwidth in MB/s."""
        return self.size / self.seconds / 1e6


@dataclass(frozen=True, slots=True)
class RequestResult:
    """The result of many requests.

    Attributes:
        count: How many were answered with the first of the expected statuses.
        rate: Requests per second.
        median: The median time of a request in milliseconds.
        p99: The 99th percentile of the times in milliseconds.
        longest: The longest time in milliseconds.
        client: The part of the time in which the client computed. Near 1, the client was the limit.
    """

    count: int
    rate: float
    median: float
    p99: float
    longest: float
    client: float


def busy(ours: Sequence[RequestResult], theirs: Sequence[RequestResult] = ()) -> Busy:
    """Return how busy the client was with each side."""
    return Busy(tuple(each.client for each in ours), tuple(each.client for each in theirs))


class Clients:
    """Worker processes. They end with the context manager.

    Args:
        count: The number of workers. Each runs one transfer at a time.
    """

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
    ) -> TransferResult:
        """Transfer `target` with several clients at the same time. Each transfer has its own connection.

        Args:
            target: What each client requests.
            clients: The number of clients.
            times: How often each client repeats the transfer.
            part: The bytes to request. The default is the whole body.
            digest: The digest that each body must have. The default is to discard the bodies unread.

        Raises:
            RuntimeError: A response is wrong.
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
        results = [worker.finish() for worker in workers]
        seconds = max(each["ended"] for each in results) - min(each["started"] for each in results)
        size, cpu = sum(each["size"] for each in results), max(each["cpu"] for each in results)
        return TransferResult(size, seconds, cpu / seconds)

    def requests(
        self,
        port: int,
        method: str,
        paths: Sequence[str],
        *,
        statuses: Sequence[int] = (200,),
        connections: int = 8,
        seconds: float | None = None,
    ) -> RequestResult:
        """Request `paths` on persistent connections.

        Args:
            port: The port on loopback.
            method: GET or HEAD.
            paths: The paths. Each is requested once, or all of them repeatedly if `seconds` is given.
            statuses: The expected statuses. Only responses with the first one are counted.
            connections: The number of connections, each with one request at a time.
            seconds: How long to send requests.

        Raises:
            RuntimeError: A response has another status.
        """
        job = {
            "job": "requests",
            "port": port,
            "method": method,
            "targets": list(paths),
            "statuses": list(statuses),
            "connections": connections,
            "seconds": seconds,
            "headers": {"Accept": f"{OCI_MANIFEST}, {OCI_INDEX}, */*"},  # docker-registry requires the first two
        }
        [worker] = self._workers[:1]
        worker.start(job)
        result = worker.finish()
        count, took = result["count"], result["seconds"]
        median, p99, longest = (1e3 * result[each] for each in ("median", "p99", "longest"))
        return RequestResult(count, count / took, median, p99, longest, result["cpu"] / took)


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
        """Start a job. Call `finish` next."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def finish(self) -> dict[str, Any]:
        """Wait for the job and return its result. Raises RuntimeError if it failed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        result: dict[str, Any] = json.loads(line) if line else {"error": "the client has ended"}
        if "error" in result:
            raise RuntimeError(result["error"])
        return result

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.communicate()
