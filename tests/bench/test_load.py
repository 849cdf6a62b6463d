"""The client counts what really arrived and rejects wrong responses. The server is the one of Python's library."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from bench.clients import Clients, Target
from bench.load import Head, WrongAnswer, parse_head
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.processes import wait_for

CONTENT = bytes(range(256)) * 20_000
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@dataclass
class Served:
    """A server of files: its port, and how often each path was requested."""

    port: int
    asked: Counter[str] = field(default_factory=Counter[str])


class Handler(SimpleHTTPRequestHandler):
    """A handler without ranges."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, asked: Counter[str], directory: str) -> None:
        self._asked = asked
        super().__init__(*args, directory=directory)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send the file, as the base class does, and keep the connection."""
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Log nothing: the tests cause errors on purpose."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        self._asked[f"{self.command} {self.path}"] += 1


class Server(ThreadingHTTPServer):
    """Ignore broken connections: the client disconnects in the middle of a wrong response."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "large").write_bytes(CONTENT)
    for number in range(20):
        (folder / f"small-{number}").write_bytes(b"small")
    asked: Counter[str] = Counter()
    server = Server(("127.0.0.1", 0), partial(Handler, asked=asked, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Served(server.server_port, asked)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def clients() -> Generator[Clients]:
    with Clients(3) as clients:
        yield clients


@pytest.mark.parametrize("digest", [None, DIGEST], ids=["thrown away", "hashed"])
def test_a_transfer_is_the_whole_body(served: Served, clients: Clients, digest: str | None) -> None:
    moved = clients.transfer(Target(served.port, "/large"), digest=digest)
    assert moved.size == len(CONTENT)
    assert 0 < moved.client <= 1.1
    assert moved.rate == pytest.approx(len(CONTENT) / moved.seconds / 1e6)


def test_transfers_at_the_same_time_count_together(served: Served, clients: Clients) -> None:
    assert clients.transfer(Target(served.port, "/large"), clients=3).size == 3 * len(CONTENT)


def test_successive_transfers_are_one_figure(served: Served, clients: Clients) -> None:
    before = served.asked["GET /large"]
    moved = clients.transfer(Target(served.port, "/large"), clients=2, times=4, digest=DIGEST)
    assert served.asked["GET /large"] - before == 2 * 4
    assert moved.size == 2 * 4 * len(CONTENT)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("/missing", {}, "404 instead of 200"),
        ("/large", {"part": range(10)}, "200 instead of 206"),
        ("/large", {"digest": "sha256:0"}, "the body is sha256:"),
    ],
)
def test_a_wrong_response_is_an_error(
    served: Served, clients: Clients, path: str, options: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        clients.transfer(Target(served.port, path), **options)
    assert clients.transfer(Target(served.port, "/large")).size == len(CONTENT)  # the client still works


def test_without_a_duration_each_path_is_requested_once(served: Served, clients: Clients) -> None:
    paths = [f"/small-{number}" for number in range(20)]
    before = served.asked.copy()
    answered = clients.requests(served.port, "GET", paths, connections=4)
    assert served.asked - before == Counter(f"GET {path}" for path in paths)
    assert 0 < answered.median <= answered.p99


def test_with_a_duration_paths_are_requested_again(served: Served, clients: Clients) -> None:
    def are_requested_again() -> bool:
        before = served.asked["HEAD /small-0"]
        clients.requests(served.port, "HEAD", ["/small-0"], connections=2, seconds=0.5)
        return served.asked["HEAD /small-0"] - before > 2

    wait_for(are_requested_again, "each client has sent more than one request in that time")


def test_an_expected_404_does_not_count(served: Served, clients: Clients) -> None:
    all_there = clients.requests(served.port, "GET", ["/small-0"] * 40, connections=1)
    paths = ["/missing", "/small-0"] * 20
    half = clients.requests(served.port, "GET", paths, statuses=[200, 404], connections=1)
    assert (all_there.count, half.count) == (40, 20)


def test_another_status_is_an_error(served: Served, clients: Clients) -> None:
    with pytest.raises(RuntimeError, match="404 instead of 200"):
        clients.requests(served.port, "GET", ["/small-0", "/missing"], connections=1)


@given(st.integers(200, 599), st.integers(0, 10**12), st.binary(max_size=20), st.data())
def test_a_head_is_read_as_soon_as_it_is_whole(status: int, length: int, body: bytes, data: st.DataObject) -> None:
    head = f"HTTP/1.1 {status} Any\r\nServer: x\r\nContent-Length: {length}\r\nETag: y\r\n\r\n".encode()
    cut = data.draw(st.integers(0, len(head) - 1))
    assert parse_head(head[:cut]) is None
    assert parse_head(head + body) == Head(status, length, len(head))


def test_a_body_without_a_length_is_refused() -> None:
    with pytest.raises(WrongAnswer, match="without Content-Length"):
        parse_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
