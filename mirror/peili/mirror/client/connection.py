"""HTTP/1.1 to a peer, one request at a time on a connection, bodies read into buffers of the caller's.

Only what content needs: answers with a known length, no redirects, no compression. Which connection is used, and which
are kept, is the pool's matter (peerpool.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httptools

from peili.mirror.client.transport import Origin, Transport
from peili.mirror.limits import KIB

HEAD_SIZE = 16 * KIB
"""Bytes that the head of an answer, with what informational ones came before it, may have."""
_END = b"\r\n\r\n"
_BODILESS = frozenset({204, 304})


class RemoteProtocolError(Exception):
    """What came is not an answer in HTTP/1.1 that can be used."""


class ServerDisconnected(OSError):
    """The connection ended before a byte of an answer came."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status and headers of an answer; names are in lower case, values of the same name joined by commas."""

    status: int
    headers: Mapping[str, str]
    keep_alive: bool

    def header(self, name: str) -> str | None:
        """The value of the header `name`, in whatever case; None: there is none."""
        return self.headers.get(name.lower())


def parse_head(data: bytes | memoryview) -> ResponseHead:
    """The head that `data` is, its empty line included. Raises RemoteProtocolError."""
    collected = _Collected()
    parser = httptools.HttpResponseParser(collected)
    try:
        parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        raise RemoteProtocolError(f"no answer in HTTP/1.1: {error}") from error
    if not collected.complete:
        raise RemoteProtocolError("no answer in HTTP/1.1")
    closing = "close" in collected.headers.get("connection", "").lower()
    return ResponseHead(parser.get_status_code(), collected.headers, parser.get_http_version() == "1.1" and not closing)


class _Collected:
    """What the parser calls."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        self.complete = True


class Connection:
    """One connection to a peer. `ask`, and have the answer closed before the next `ask`.

    `done` is called when it can be used again, or (false) can't.
    """

    def __init__(self, origin: Origin, transport: Transport, done: Callable[[Connection, bool], None]) -> None:
        self.origin = origin
        self.transport = transport
        self._done = done

    async def ask(self, method: str, request: bytes) -> Response:
        """Send `request`, whose method is `method`; returns once the head of its answer is here.

        Raises ServerDisconnected, OSError, RemoteProtocolError; then, and when cancelled, the connection is closed.
        """
        try:
            head, rest = await self._exchange(request)
            return Response(self, head, rest, _length(method, head))
        except BaseException:
            self.release(reusable=False)
            raise

    def release(self, *, reusable: bool) -> None:
        """The answer is done with."""
        self._done(self, reusable and self.transport.is_quiet())

    async def _exchange(self, request: bytes) -> tuple[ResponseHead, memoryview]:
        try:
            await self.transport.send(request)
        except ConnectionError as error:
            raise ServerDisconnected(str(error)) from error
        got = bytearray(HEAD_SIZE)
        view, start, filled = memoryview(got), 0, 0
        while True:
            end = got.find(_END, start, filled) + len(_END)
            if end < len(_END):
                filled += await self._more(view[filled:], first=not filled)
                continue
            head = parse_head(view[start:end])
            if head.status >= 200:
                return head, view[end:filled]
            start = end  # an informational one: the answer follows

    async def _more(self, room: memoryview, *, first: bool) -> int:
        if not room:
            raise RemoteProtocolError(f"the head of the answer has more than {HEAD_SIZE} bytes")
        try:
            count = await self.transport.recv_into(room)
        except ConnectionError as error:
            raise ServerDisconnected(str(error)) if first else error from error
        if count == 0:
            raise (
                ServerDisconnected("closed without an answer")
                if first
                else ConnectionError("closed in the middle of a head")
            )
        return count


def _length(method: str, head: ResponseHead) -> int | None:
    """How many bytes of a body follow (RFC 9112, 6.3); None where that is not known ahead."""
    if method == "HEAD" or head.status in _BODILESS:
        return 0
    length = head.headers.get("content-length")
    if length is None or "transfer-encoding" in head.headers:
        return None
    return int(length)


class Response:
    """The answer to one request: its `head`, and its body to be read once. One owner, who calls `close`.

    `length` is that of the body; where it is None, the body can't be read. `left` is what has not been read.
    """

    def __init__(self, connection: Connection, head: ResponseHead, rest: memoryview, length: int | None) -> None:
        self.head = head
        self.length = length
        self.left = length or 0
        self.on_close: Callable[[], None] | None = None  # called once, by `close`
        self._beyond = len(rest) > self.left
        self._early = rest[: self.left]  # what came with the head
        self._connection: Connection | None = connection

    @property
    def buffered(self) -> int:
        """How many bytes of the body are here already. They are read before others, and only by `readinto`."""
        return len(self._early)

    @property
    def can_splice(self) -> bool:
        """Whether `splice` works here."""
        return self._connection is not None and self._connection.transport.can_splice

    async def begin(self) -> None:
        """Wait until there is an `early` byte, unless the body is empty. Raises OSError."""
        if self.left and not self._early:
            room = memoryview(bytearray(min(HEAD_SIZE, self.left)))
            self._early = room[: await self._wire().recv_into(room)]
            if not self._early:
                raise ConnectionError("closed before the first byte")

    async def readinto(self, buffer: memoryview) -> int:
        """Wait for bytes of the body and read as many as have come; 0 at its end. Raises OSError.

        What is early comes alone, so that whoever is waiting has something soon.
        """
        if not self.left:
            return 0
        if self._early:
            count = min(len(self._early), len(buffer))
            buffer[:count], self._early = self._early[:count], self._early[count:]
            self.left -= count
            return count
        transport, room = self._wire(), buffer[: self.left]
        filled = count = await transport.recv_into(room)
        while count and filled < len(room):
            count = transport.recv_now(room[filled:])
            filled += count
        if not filled:
            raise ConnectionError("closed in the middle of the body")
        self.left -= filled
        return filled

    async def splice(self, pipe: int, count: int) -> int:
        """As `readinto`, for up to `count` bytes, into a pipe, which must have room. Raises OSError."""
        moved = await self._wire().recv_pipe(pipe, min(count, self.left))
        if not moved:
            raise ConnectionError("closed in the middle of the body")
        self.left -= moved
        return moved

    def close(self) -> None:
        """Give the connection back, to be used again where the body was read to its end. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            whole = self.length is not None and not self.left and not self._beyond
            connection.release(reusable=self.head.keep_alive and whole)
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    def _wire(self) -> Transport:
        if self._connection is None:
            raise ConnectionError("the answer is closed")
        return self._connection.transport
