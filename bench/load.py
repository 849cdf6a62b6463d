"""A cheap HTTP client, as a process: `python -m bench.load`. bench/clients.py starts it.

It reads jobs from its standard input, one JSON object per line, and prints one result per line. There are two kinds of
jobs: large transfers, one after the other, and many small requests on a few connections. The kernel discards the bodies
(tcp(7), MSG_TRUNC), so they are not copied. Times are in seconds on the monotonic clock, which all processes share.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import selectors
import socket
import ssl
import sys
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

_BUFFER = 4 << 20
_TIMEOUT = 120.0
_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class WrongAnswer(Exception):
    """The response is not the one that the job expects, so its time must not be measured."""


class Head(NamedTuple):
    """The head of a response: its status, the length of the body, and the size of the head in bytes."""

    status: int
    length: int
    size: int


def parse_head(data: bytes | bytearray) -> Head | None:
    """Parse the head at the beginning of `data`. Return None if it is incomplete.

    Raises:
        WrongAnswer: The response has no Content-Length.
    """
    end = data.find(_HEAD_END)
    if end < 0:
        return None
    length = _LENGTH.search(data, 0, end)
    if length is None:
        raise WrongAnswer(f"a response without Content-Length: {bytes(data[:end])!r}")
    return Head(int(data[9:12]), int(length[1]), end + len(_HEAD_END))


def request(method: str, target: str, port: int, headers: Mapping[str, str]) -> bytes:
    """Return the bytes of a request."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{port}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def transfer(job: Mapping[str, Any]) -> dict[str, Any]:
    """Send `times` GET requests, one after the other, each on its own connection.

    Returns:
        When the first request started, when the last body ended, and the size of all bodies. If the job has a
        `digest`, each body must have it.
    """
    tls = None if job.get("tls") is None else _tls(job["tls"])
    size, started, ended = 0, None, 0.0
    for _ in range(job.get("times", 1)):
        with _connected(job["port"], tls) as connection:
            started = time.monotonic() if started is None else started
            size += _get(connection, job)
            ended = time.monotonic()
    return {"started": started, "ended": ended, "size": size}


def _get(connection: socket.socket, job: Mapping[str, Any]) -> int:
    """Send one GET request, read the response, and return the length of its body."""
    headers: dict[str, str] = {"Range": job["range"]} if job.get("range") else {}
    connection.sendall(request("GET", job["target"], job["port"], headers))
    head, first = _read_head(connection)
    if head.status != job["status"]:
        raise WrongAnswer(f"{job['target']}: {head.status} instead of {job['status']}")
    if not job.get("digest"):
        _discard(connection, head.length - len(first))
        return head.length
    digest = hashlib.sha256(first)
    _hash(connection, head.length - len(first), digest)
    if f"sha256:{digest.hexdigest()}" != job["digest"]:
        raise WrongAnswer(f"{job['target']}: the body is sha256:{digest.hexdigest()} instead of {job['digest']}")
    return head.length


def _tls(files: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files["ca"])
    context.load_cert_chain(files["cert"], files["key"])
    return context


@contextmanager
def _connected(port: int, tls: ssl.SSLContext | None) -> Generator[socket.socket]:
    with ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT))
        if tls is not None:
            connection = stack.enter_context(tls.wrap_socket(connection, server_hostname="127.0.0.1"))
        yield connection


def _read_head(connection: socket.socket) -> tuple[Head, bytes]:
    """Read the head. Return it with the bytes of the body that came with it."""
    data = bytearray()
    while (head := parse_head(data)) is None:
        data += _not_empty(connection.recv(65536))
    return head, bytes(data[head.size :])


def _not_empty(received: bytes) -> bytes:
    if not received:
        raise WrongAnswer("the connection ended in the middle of a response")
    return received


def _discard(connection: socket.socket, left: int) -> None:
    # TLS must be read to be decrypted. Otherwise the kernel drops the bytes.
    flags = 0 if isinstance(connection, ssl.SSLSocket) else socket.MSG_TRUNC
    buffer = bytearray(_BUFFER)
    while left:
        count = connection.recv_into(buffer, min(left, _BUFFER), flags)
        if not count:
            raise WrongAnswer(f"the connection ended with {left} bytes to come")
        left -= count


def _hash(connection: socket.socket, left: int, digest: Any) -> None:
    buffer = memoryview(bytearray(_BUFFER))
    while left:
        count = connection.recv_into(buffer, min(left, _BUFFER))
        if not count:
            raise WrongAnswer(f"the connection ended with {left} bytes to come")
        digest.update(buffer[:count])
        left -= count


class _Connection:
    """A persistent connection with at most one request at a time."""

    def __init__(self, connection: socket.socket, *, body: bool) -> None:
        self.connection = connection
        self._body = body
        self._data = bytearray()
        self._sent = 0.0

    def send(self, requests: Iterator[bytes]) -> bool:
        """Send the next of `requests`. Return False if there is none."""
        data = next(requests, None)
        if data is None:
            return False
        self._data.clear()
        self._sent = time.monotonic()
        self.connection.sendall(data)
        return True

    def receive(self, expected: Collection[int]) -> tuple[int, float] | None:
        """Read from the connection. Return the status and the seconds of the request when the response is complete."""
        self._data += _not_empty(self.connection.recv(65536))
        head = parse_head(self._data)
        if head is None or len(self._data) < head.size + (head.length if self._body else 0):
            return None
        if head.status not in expected:
            wanted = " or ".join(map(str, expected))
            raise WrongAnswer(f"{head.status} instead of {wanted}: {bytes(self._data[:400])!r}")
        return head.status, time.monotonic() - self._sent


def requests(job: Mapping[str, Any]) -> dict[str, Any]:
    """Send requests for `targets`: repeatedly until `seconds` have passed, or each once.

    Returns:
        The times of the requests, and how many were answered with the first of `statuses`. Any other status is an
        error.
    """
    port, method, headers = job["port"], job["method"], job.get("headers", {})
    wanted = [request(method, target, port, headers) for target in job["targets"]]
    with ExitStack() as stack:
        connections = [stack.enter_context(_connected(port, None)) for _ in range(job["connections"])]
        persistent = [_Connection(each, body=method != "HEAD") for each in connections]
        started = time.monotonic()
        answers = _run(persistent, _repeat(wanted, job.get("seconds")), job["statuses"])
        took = time.monotonic() - started
    times = sorted(each for _, each in answers)
    median, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
    count = sum(status == job["statuses"][0] for status, _ in answers)
    return {"count": count, "seconds": took, "median": median, "p99": p99, "longest": times[-1]}


def _repeat(wanted: Sequence[bytes], seconds: float | None) -> Iterator[bytes]:
    if seconds is None:
        yield from wanted
        return
    end = time.monotonic() + seconds
    for each in itertools.cycle(wanted):
        if time.monotonic() >= end:
            return
        yield each


def _run(
    connections: Sequence[_Connection], wanted: Iterator[bytes], expected: Collection[int]
) -> list[tuple[int, float]]:
    answers: list[tuple[int, float]] = []
    with selectors.DefaultSelector() as selector:
        for each in connections:
            selector.register(each.connection, selectors.EVENT_READ, each)
        running = sum(each.send(wanted) for each in connections)
        while running:
            ready = selector.select(_TIMEOUT)
            if not ready:
                raise WrongAnswer(f"no answer within {_TIMEOUT:g} s")
            for key, _ in ready:
                connection = key.data
                answer = connection.receive(expected)
                if answer is not None:
                    answers.append(answer)
                    running -= not connection.send(wanted)
    return answers


_JOBS = {"transfer": transfer, "requests": requests}


def main() -> None:
    """Run jobs until the input ends. The result of a failed job is its error."""
    for line in sys.stdin:
        job: dict[str, Any] = json.loads(line)
        before = time.process_time()
        try:
            answer: dict[str, Any] = _JOBS[job["job"]](job)
        except (WrongAnswer, OSError) as error:
            answer = {"error": f"port {job['port']}: {error or type(error).__name__}"}
        answer["cpu"] = time.process_time() - before
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
