"""A client that costs little, as a process of its own: `python -m bench.load` reads jobs from its standard input, one
JSON object a line, and answers each with a line. Who starts it is bench/clients.py.

Bodies are thrown away by the kernel (tcp(7), MSG_TRUNC) rather than copied here. Two kinds of jobs: large transfers,
one after the other, and many small requests on a few connections. Times are in seconds on the monotonic clock, which
all processes share.
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
    """What came back is not what the job expects; a fast wrong answer is no measurement."""


class Head(NamedTuple):
    """What matters of an answer's head."""

    status: int
    length: int
    size: int


def parse_head(data: bytes | bytearray) -> Head | None:
    """The head that `data` begins with; None while it is not whole. Raises WrongAnswer for a body without a length."""
    end = data.find(_HEAD_END)
    if end < 0:
        return None
    length = _LENGTH.search(data, 0, end)
    if length is None:
        raise WrongAnswer(f"an answer without Content-Length: {bytes(data[:end])!r}")
    return Head(int(data[9:12]), int(length[1]), end + len(_HEAD_END))


def request(method: str, target: str, port: int, headers: Mapping[str, str]) -> bytes:
    """A request's bytes."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{port}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def transfer(job: Mapping[str, Any]) -> dict[str, Any]:
    """`times` GETs, one after the other, each on a connection of its own. When the first request began and the last
    body ended, and how long all bodies were; `digest`, where given, is that of each.
    """
    tls = None if job.get("tls") is None else _tls(job["tls"])
    size, began, ended = 0, None, 0.0
    for _ in range(job.get("times", 1)):
        with _connected(job["port"], tls) as connection:
            began = time.monotonic() if began is None else began
            size += _get(connection, job)
            ended = time.monotonic()
    return {"began": began, "ended": ended, "size": size}


def _get(connection: socket.socket, job: Mapping[str, Any]) -> int:
    """How long the body was."""
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
    """The head, and what came of the body with it."""
    data = bytearray()
    while (head := parse_head(data)) is None:
        data += _some(connection.recv(65536))
    return head, bytes(data[head.size :])


def _some(received: bytes) -> bytes:
    if not received:
        raise WrongAnswer("the connection ended in the middle of an answer")
    return received


def _discard(connection: socket.socket, left: int) -> None:
    # TLS has to be read to be decrypted; elsewhere the kernel drops the bytes where they are.
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


class _Lane:
    """A kept connection with at most one request under way."""

    def __init__(self, connection: socket.socket, *, body: bool) -> None:
        self.connection = connection
        self._body = body
        self._data = bytearray()
        self._sent = 0.0

    def send(self, requests: Iterator[bytes]) -> bool:
        """Send the next of `requests`; False where there is none."""
        data = next(requests, None)
        if data is None:
            return False
        self._data.clear()
        self._sent = time.monotonic()
        self.connection.sendall(data)
        return True

    def receive(self, expected: Collection[int]) -> tuple[int, float] | None:
        """The status, and how long the request took; None while its answer is not whole."""
        self._data += _some(self.connection.recv(65536))
        head = parse_head(self._data)
        if head is None or len(self._data) < head.size + (head.length if self._body else 0):
            return None
        if head.status not in expected:
            wanted = " or ".join(map(str, expected))
            raise WrongAnswer(f"{head.status} instead of {wanted}: {bytes(self._data[:400])!r}")
        return head.status, time.monotonic() - self._sent


def requests(job: Mapping[str, Any]) -> dict[str, Any]:
    """Requests for `targets`, over and over until `seconds` have passed, or each once. Of all of them the times, and
    how many were answered with the first of `statuses`; others than these are an error.
    """
    port, method, headers = job["port"], job["method"], job.get("headers", {})
    wanted = [request(method, target, port, headers) for target in job["targets"]]
    with ExitStack() as stack:
        connections = [stack.enter_context(_connected(port, None)) for _ in range(job["connections"])]
        lanes = [_Lane(each, body=method != "HEAD") for each in connections]
        began = time.monotonic()
        answers = _run(lanes, _until(wanted, job.get("seconds")), job["statuses"])
        took = time.monotonic() - began
    times = sorted(each for _, each in answers)
    middle, late = times[len(times) // 2], times[len(times) * 99 // 100]
    count = sum(status == job["statuses"][0] for status, _ in answers)
    return {"count": count, "seconds": took, "median": middle, "p99": late, "longest": times[-1]}


def _until(wanted: Sequence[bytes], seconds: float | None) -> Iterator[bytes]:
    if seconds is None:
        yield from wanted
        return
    end = time.monotonic() + seconds
    for each in itertools.cycle(wanted):
        if time.monotonic() >= end:
            return
        yield each


def _run(lanes: Sequence[_Lane], wanted: Iterator[bytes], expected: Collection[int]) -> list[tuple[int, float]]:
    answers: list[tuple[int, float]] = []
    with selectors.DefaultSelector() as selector:
        for lane in lanes:
            selector.register(lane.connection, selectors.EVENT_READ, lane)
        under_way = sum(lane.send(wanted) for lane in lanes)
        while under_way:
            ready = selector.select(_TIMEOUT)
            if not ready:
                raise WrongAnswer(f"no answer within {_TIMEOUT:g} s")
            for key, _ in ready:
                lane = key.data
                answer = lane.receive(expected)
                if answer is not None:
                    answers.append(answer)
                    under_way -= not lane.send(wanted)
    return answers


_JOBS = {"transfer": transfer, "requests": requests}


def main() -> None:
    """Answer jobs until the input ends. What went wrong with one is its answer."""
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
