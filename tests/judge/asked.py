"""Who is asked: listeners on loopback that write down each request, as the registries and mirrors of a test and as the
proxy on the way to those that have a name only. Nobody has anything: each request gets 404.
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
"""Whom the listeners have a certificate for."""

_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_PATIENCE = 60.0
_HELLO = 0x16  # begins a TLS connection


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: where it went to, as ``http://host:port``, without a scheme's own port; its path and query."""

    host: str
    path: str
    headers: Mapping[str, str]


class Listeners:
    """Threads that take every connection to `port` of `ADDRESSES`. `authority` is whom a client has to trust."""

    def __init__(self, directory: Path) -> None:
        authority = Authority(directory / "authority")
        issued = authority.issue(directory / "listeners", *ADDRESSES, *NAMES)
        self.authority = authority.cert
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(issued.cert, issued.key)
        self._asked: list[Asked] = []
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self.port = 0

    @contextmanager
    def listening(self) -> Generator[None]:
        """They listen for as long as this lasts. Raises OSError where no port is free."""
        with ExitStack() as stack:
            self.port, sockets = _bound(stack)
            for each in sockets:
                threading.Thread(target=self._accept, args=(each,), daemon=True).start()
            yield
            for each in sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def environment(self) -> dict[str, str]:
        """What has a client written in Go come to them, for whatever name, and trust them."""
        proxy = f"http://127.0.0.1:{self.port}"
        return {
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy),
            "SSL_CERT_FILE": str(self.authority),
            "SSL_CERT_DIR": "/nonexistent",
        }

    def heard(self) -> list[Asked]:
        """The requests since this was last called, in their order."""
        with self._lock:
            heard, self._asked = self._asked, []
        return heard

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.settimeout(_PATIENCE)
            self._talk(connection, "http")

    def _talk(self, connection: socket.socket, scheme: str, through: str | None = None) -> None:
        """Hear one request. `through`: the proxy was asked for a tunnel to there."""
        if connection.recv(1, socket.MSG_PEEK)[:1] == bytes([_HELLO]):
            with self._context.wrap_socket(connection, server_side=True) as secured:
                self._hear(secured, "https", through)
        else:
            self._hear(connection, scheme, through)

    def _hear(self, connection: socket.socket, scheme: str, through: str | None) -> None:
        with connection.makefile("rb") as reader:
            request, headers = _head(reader)
        if not request:
            return
        method, target, _ = request.split(" ", 2)
        if method == "CONNECT":
            connection.sendall(_CONNECTED)
            self._talk(connection, scheme, target)
            return
        if target.startswith("http://"):
            host, slash, path = target.removeprefix("http://").partition("/")
            target = slash + path
        else:
            host = headers.get("host", "")
        asked = Asked(_origin(scheme, through or host), target, headers)
        with self._lock:
            self._asked.append(asked)
        connection.sendall(_NOT_FOUND)


def _bound(stack: ExitStack) -> tuple[int, Sequence[socket.socket]]:
    """A port that is free on every one of the addresses, and a listener on each."""
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


def _head(reader: BufferedReader) -> tuple[str, dict[str, str]]:
    request = reader.readline().decode("latin-1").strip()
    headers: dict[str, str] = {}
    while line := reader.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return request, headers


def _origin(scheme: str, host: str) -> str:
    usual = {"http": ":80", "https": ":443"}[scheme]
    return f"{scheme}://{host.removesuffix(usual)}"
