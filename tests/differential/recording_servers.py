"""HTTP servers on loopback that record requests. They play the registries and mirrors of a test.

They are also the proxy for hosts that have only a name. They have no content: each response is 404.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from tests.support.certificates import Authority
from tests.support.ports import free_ports

ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "::1")
NAMES = ("*.example", "*.example.bak", "registry-1.docker.io", "localhost", "mirror", "b-example", "a", "httpd.example")
"""The names in the certificate of the servers."""

_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_TIMEOUT = 60.0
_TLS_HANDSHAKE = 0x16  # the first byte of a TLS connection


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request.

    Attributes:
        host: The origin to which it was sent, such as ``http://host:port``, without a default port.
        path: The path and query.
        headers: The headers, with names in lower case.
    """

    host: str
    path: str
    headers: Mapping[str, str]


class RecordingServers:
    """Threads that accept connections to `port` at each of `ADDRESSES`.

    Args:
        directory: The directory of the certificates.

    Attributes:
        authority: The certificate that a client must trust.
        port: The port while `listening` is entered.
    """

    def __init__(self, directory: Path) -> None:
        authority = Authority(directory / "authority")
        issued = authority.issue(directory / "servers", *ADDRESSES, *NAMES)
        self.authority = authority.cert
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(issued.cert, issued.key)
        self._requests: list[RecordedRequest] = []
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self.port = 0

    @contextmanager
    def listening(self) -> Generator[None]:
        """Listen until the context is exited. Raises OSError if no port is free."""
        with ExitStack() as stack:
            self.port, sockets = _bind(stack)
            for each in sockets:
                threading.Thread(target=self._accept, args=(each,), daemon=True).start()
            yield
            for each in sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def environment(self) -> dict[str, str]:
        """Return the environment variables that make a Go program use these servers for every name, and trust them."""
        proxy = f"http://127.0.0.1:{self.port}"
        return {
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy),
            "SSL_CERT_FILE": str(self.authority),
            "SSL_CERT_DIR": "/nonexistent",
        }

    def take_requests(self) -> list[RecordedRequest]:
        """Return the requests since the last call, in order."""
        with self._lock:
            requests, self._requests = self._requests, []
        return requests

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.settimeout(_TIMEOUT)
            self._serve_request(connection, "http")

    def _serve_request(self, connection: socket.socket, scheme: str, tunnel: str | None = None) -> None:
        """Serve one request, with or without TLS. `tunnel` is the host of an earlier CONNECT request."""
        if connection.recv(1, socket.MSG_PEEK)[:1] == bytes([_TLS_HANDSHAKE]):
            with self._context.wrap_socket(connection, server_side=True) as tls_connection:
                self._record(tls_connection, "https", tunnel)
        else:
            self._record(connection, scheme, tunnel)

    def _record(self, connection: socket.socket, scheme: str, tunnel: str | None) -> None:
        with connection.makefile("rb") as reader:
            request, headers = _read_head(reader)
        if not request:
            return
        method, target, _ = request.split(" ", 2)
        if method == "CONNECT":
            connection.sendall(_CONNECTED)
            self._serve_request(connection, scheme, target)
            return
        if target.startswith("http://"):
            host, slash, path = target.removeprefix("http://").partition("/")
            target = slash + path
        else:
            host = headers.get("host", "")
        recorded = RecordedRequest(_origin(scheme, tunnel or host), target, headers)
        with self._lock:
            self._requests.append(recorded)
        connection.sendall(_NOT_FOUND)


def _bind(stack: ExitStack) -> tuple[int, Sequence[socket.socket]]:
    """Return a port that is free on all addresses, and a listening socket on each of them."""
    for port in free_ports(50):
        with ExitStack() as attempt:
            try:
                sockets = [attempt.enter_context(_listener(address, port)) for address in ADDRESSES]
            except OSError:
                continue
            stack.push(attempt.pop_all())
            return port, sockets
    raise OSError("no port is free on all addresses")


def _listener(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, backlog=128)


def _read_head(reader: BufferedReader) -> tuple[str, dict[str, str]]:
    request = reader.readline().decode("latin-1").strip()
    headers: dict[str, str] = {}
    while line := reader.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return request, headers


def _origin(scheme: str, host: str) -> str:
    default_port = {"http": ":80", "https": ":443"}[scheme]
    return f"{scheme}://{host.removesuffix(default_port)}"
