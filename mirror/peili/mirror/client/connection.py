"""One connection to a peer in HTTP/1.1: one request at a time, with a body that is read into the caller's buffers.

Only what peers need is supported: responses with a known length, no redirects, no compression. The pool (pool.py)
decides which connections are used and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import httptools

from peili.mirror.client.connecting import Origin
from peili.mirror.client.transport import Transport
from peili.mirror.limits import KIB
from peili.mirror.peer_api.peers import IDENTITY_HEADER

MAX_HEAD_SIZE = 16 * KIB
"""The largest head of a response in bytes, including informational responses before it."""
_CUT_OFF = "closed in the middle of a head"
_MAY_BE_REFUSED = "it may not accept the certificate of this host"
_HEAD_END = b"\r\n\r\n"
_BODILESS = frozenset({204, 304})


class RemoteProtocolError(Exception):
    """The peer sent something other than a usable response in HTTP/1.1."""


class ServerDisconnected(OSError):
    """The connection ended before the first byte of the response."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The status and headers of a response.

    Attributes:
        headers: Names are in lower case. Values of the same name are joined by commas.
        keep_alive: Whether the peer keeps the connection open.
    """

    status: int
    headers: Mapping[str, str]
    keep_alive: bool

    def header(self, name: str) -> str | None:
        """Return the value of the header `name`, in any case; None if there is none."""
        return self.headers.get(name.lower())


def parse_head(data: bytes | memoryview) -> ResponseHead:
    """Parse the head of a response, up to and including its empty line.

    Raises:
        RemoteProtocolError: `data` is not the head of a response in HTTP/1.1.
    """
    collector = _HeadCollector()
    parser = httptools.HttpResponseParser(collector)
    try:
        parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        raise RemoteProtocolError(f"no response in HTTP/1.1: {error}") from error
    if not collector.is_complete:
        raise RemoteProtocolError("no response in HTTP/1.1")
    closes = "close" in collector.headers.get("connection", "").lower()
    return ResponseHead(parser.get_status_code(), collector.headers, parser.get_http_version() == "1.1" and not closes)


class _HeadCollector:
    """The callbacks of the parser."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.is_complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        self.is_complete = True


class Connection:
    """One connection to a peer. Close the response to a request before the next request.

    Args:
        origin: Where the connection leads.
        transport: The open transport.
        on_release: Called with the connection, and with whether it can be used again, when a response is closed.
        is_on_trial: Whether the peer has yet to accept the certificate of this host. With TLS 1.3, it says that it does
            not only after the handshake, and possibly without a word.
    """

    def __init__(
        self,
        origin: Origin,
        transport: Transport,
        on_release: Callable[[Connection, bool], None],
        *,
        is_on_trial: bool = False,
    ) -> None:
        self.origin = origin
        self.transport = transport
        self._on_release = on_release
        self._is_on_trial = is_on_trial

    async def request(self, method: str, data: bytes) -> Response:
        """Send a request and wait for the head of its response.

        If this raises or is cancelled, the connection is closed.

        Args:
            method: The method of the request.
            data: The request.

        Raises:
            ServerDisconnected: The connection ended before the response began.
            OSError: The connection ended later.
            RemoteProtocolError: The response is malformed, or has another id than the certificate of the peer.
        """
        try:
            head, rest = await self._exchange(data)
            self._is_on_trial = False
            self._check_identity(head)
            return Response(self, head, rest, _body_length(method, head))
        except BaseException:
            self.release(is_reusable=False)
            raise

    def _check_identity(self, head: ResponseHead) -> None:
        """Check the id in the response against the certificate, so that all other code may believe it."""
        shown, stated = self.transport.identity, head.header(IDENTITY_HEADER)
        if shown is not None and stated is not None and stated != shown:
            raise RemoteProtocolError(f"it answers as {stated[:80]!a}, but its certificate shows {shown!a}")

    def release(self, *, is_reusable: bool) -> None:
        """End the use of the connection for the current request."""
        self._on_release(self, is_reusable)

    async def _exchange(self, data: bytes) -> tuple[ResponseHead, memoryview]:
        """Return the head of the response, and the bytes that came with it."""
        try:
            await self.transport.send(data)
        except ConnectionError as error:
            if self._is_on_trial:
                with suppress(ConnectionError):
                    await self.transport.recv_into(memoryview(bytearray(1)))  # raises an alert, which says why
            raise self._disconnected(str(error)) from error
        buffer = bytearray(MAX_HEAD_SIZE)
        view, start, filled = memoryview(buffer), 0, 0
        while True:
            end = buffer.find(_HEAD_END, start, filled) + len(_HEAD_END)
            if end < len(_HEAD_END):
                filled += await self._receive(view[filled:], is_first=not filled)
                continue
            head = parse_head(view[start:end])
            if head.status >= 200:
                return head, view[end:filled]
            start = end  # an informational response; the final one follows

    async def _receive(self, buffer: memoryview, *, is_first: bool) -> int:
        if not buffer:
            raise RemoteProtocolError(f"the head of the response has more than {MAX_HEAD_SIZE} bytes")
        try:
            count = await self.transport.recv_into(buffer)
        except ConnectionError as error:
            raise self._disconnected(str(error)) if is_first else error from error
        if count == 0:
            raise self._disconnected("closed without a response") if is_first else ConnectionError(_CUT_OFF)
        return count

    def _disconnected(self, reason: str) -> ServerDisconnected:
        return ServerDisconnected(f"{reason}; {_MAY_BE_REFUSED}" if self._is_on_trial else reason)


def _body_length(method: str, head: ResponseHead) -> int | None:
    """Return the length of the body in bytes (RFC 9112, section 6.3); None if it is not known in advance."""
    if method == "HEAD" or head.status in _BODILESS:
        return 0
    length = head.headers.get("content-length")
    if length is None or "transfer-encoding" in head.headers:
        return None
    return int(length)


class Response:
    """The response to one request. Its body is read once. The one owner closes it.

    Attributes:
        head: The status and headers.
        length: The length of the body in bytes. None if the peer does not state it, for example in a chunked response.
            Such a body cannot be read.
        remaining: How many bytes of the body were not read yet.
        on_close: Called once, when the response is closed.
    """

    def __init__(self, connection: Connection, head: ResponseHead, rest: memoryview, length: int | None) -> None:
        self.head = head
        self.length = length
        self.remaining = length or 0
        self.on_close: Callable[[], None] | None = None
        self._has_excess = len(rest) > self.remaining
        self._buffer = rest[: self.remaining]  # what came with the head
        self._connection: Connection | None = connection

    @property
    def buffered(self) -> int:
        """The number of bytes of the body that are in memory. `readinto` returns them first, `splice` cannot."""
        return len(self._buffer)

    @property
    def can_splice(self) -> bool:
        """Whether `splice` is supported."""
        return self._connection is not None and self._connection.transport.can_splice

    async def begin(self) -> None:
        """Wait until a byte of the body is buffered, unless the body is empty.

        Raises:
            OSError: The connection ended.
        """
        if self.remaining and not self._buffer:
            buffer = memoryview(bytearray(min(MAX_HEAD_SIZE, self.remaining)))
            self._buffer = buffer[: await self._transport.recv_into(buffer)]
            if not self._buffer:
                raise ConnectionError("closed before the first byte")

    async def readinto(self, buffer: memoryview) -> int:
        """Wait for bytes of the body, and read those that have arrived.

        Bytes that are buffered are returned at once, without those that arrived later. Otherwise, the buffer is filled
        with everything that has arrived, which saves turns of the event loop.

        Returns:
            The number of bytes; 0 at the end of the body.

        Raises:
            OSError: The connection ended.
        """
        if not self.remaining:
            return 0
        if self._buffer:
            count = min(len(self._buffer), len(buffer))
            buffer[:count], self._buffer = self._buffer[:count], self._buffer[count:]
            self.remaining -= count
            return count
        transport, rest = self._transport, buffer[: self.remaining]
        filled = count = await transport.recv_into(rest)
        while count and filled < len(rest):
            count = transport.recv_nowait(rest[filled:])
            filled += count
        if not filled:
            raise ConnectionError("closed in the middle of the body")
        self.remaining -= filled
        return filled

    async def read(self, limit: int) -> bytes:
        """Read the whole body.

        Args:
            limit: The largest size in bytes.

        Raises:
            RemoteProtocolError: The body is larger, or its size is not known in advance.
            OSError: The connection ended.
        """
        if self.length is None:
            raise RemoteProtocolError("the size of the response is not stated")
        if self.length > limit:
            raise RemoteProtocolError(f"the response has {self.length} bytes; at most {limit} are read")
        if self.remaining > len(self._buffer):
            self._transport.acknowledge()
        body = bytearray(self.length)
        view, filled = memoryview(body), 0
        while self.remaining:
            filled += await self.readinto(view[filled:])
        return bytes(body)

    async def splice(self, pipe: int, count: int) -> int:
        """Wait for bytes of the body, and move up to `count` of them into a pipe, which must have room.

        Returns:
            The number of bytes.

        Raises:
            OSError: The connection ended.
        """
        moved = await self._transport.recv_pipe(pipe, min(count, self.remaining))
        if not moved:
            raise ConnectionError("closed in the middle of the body")
        self.remaining -= moved
        return moved

    def close(self, *, keep: bool = True) -> None:
        """Release the connection. Idempotent.

        Args:
            keep: Whether the connection may be used again, which it is if the body was read to its end.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            is_whole = self.length is not None and not self.remaining and not self._has_excess
            connection.release(is_reusable=keep and self.head.keep_alive and is_whole)
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    @property
    def _transport(self) -> Transport:
        if self._connection is None:
            raise ConnectionError("the response is closed")
        return self._connection.transport
