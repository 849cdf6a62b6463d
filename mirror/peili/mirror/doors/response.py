"""Writes the response to one request over ASGI: the status and headers once, then the body."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from starlette.types import Message, Scope, Send

from peili.mirror.limits import KIB
from peili.mirror.oci.ranges import (
    ByteRange,
    MultipartByteranges,
    Span,
    Unsatisfiable,
    entity_tag,
    if_range_matches,
    is_not_modified,
    parse_ranges,
)
from peili.mirror.oci.references import Descriptor, Digest, is_manifest
from peili.mirror.oci.requests import SIZE_INVALID, HTTPError
from peili.mirror.server.socket_writer import get_socket_writer
from peili.mirror.support.deadlines import Deadline

_ERRORS = 400
_VERSION_HEADER = (b"docker-distribution-api-version", b"registry/2.0")
_MAX_COPY = 64 * KIB
"""Up to this number of bytes, a copy costs less than the socket writer."""
_END: Message = {"type": "http.response.body", "body": b"", "more_body": False}


class ResponseWriter:
    """Writes the response to one request.

    A response with content consists of `start` or `start_parts`, the bytes of the body (`send`, `send_path` or the
    socket writer), and `end`. If the content cannot be sent to its end, do not call `end`: the server then closes the
    connection, which tells the client that the response is cut off. `json`, `error`, `send_head`, `send_not_modified`
    and `send_whole` each send a complete response.

    Every method that sends raises TimeoutError if the client reads nothing for `reader_timeout` seconds, and OSError if
    the client has disconnected.

    Args:
        scope: The ASGI scope of the request.
        send: The ASGI send callable.
        reader_timeout: The time in seconds for which the client may read nothing.

    Attributes:
        is_head: Whether the request is a HEAD request. Its response has no body.
        has_started: Whether the status was sent. From then on, no other response is possible.
        socket_writer: Writes the body directly to the socket, if the server supports that. Read it after `start`, which
            decides whether it is used.
        more_headers: Headers that the response gets in addition, unless it is an error.
        can_send_path: Whether the server supports `send_path`.
    """

    def __init__(self, scope: Scope, send: Send, reader_timeout: float) -> None:
        self.is_head: bool = scope["method"] == "HEAD"
        self.has_started = False
        self.socket_writer = get_socket_writer(send)
        if self.socket_writer is not None:
            self.socket_writer.set_timeout(reader_timeout)
        self.can_send_path = "http.response.pathsend" in (scope.get("extensions") or ())
        self.more_headers: list[tuple[bytes, bytes]] = []
        self._headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # the first of equal names wins
        self._send = send
        self._can_chunk = scope.get("http_version", "1.1") != "1.0"
        self._reader_timeout = reader_timeout

    def header(self, name: bytes) -> str | None:
        """Return the value of a request header. `name` is in lower case."""
        value = self._headers.get(name)
        return None if value is None else value.decode("latin-1")

    async def json(self, document: object, headers: Mapping[str, str] | None = None) -> None:
        """Send `document` with status 200."""
        await self._send_json(200, json.dumps(document).encode(), headers or {})

    async def error(self, error: HTTPError) -> None:
        """Send an error response."""
        await self._send_json(error.status, error.body(), error.headers)

    def range(self, digest: Digest) -> ByteRange | None:
        """Return the range that the client asks for; None for the whole content, or for several ranges."""
        ranges = self._ranges(digest)
        return ranges[0] if len(ranges) == 1 else None

    def span(self, digest: Digest, size: int) -> Span:
        """Return the bytes to send of content of `size` bytes, in one piece.

        Raises:
            HTTPError: 416, the content has no byte of the range.
        """
        spans = self.spans(digest, size)
        return spans[0] if len(spans) == 1 else Span.whole(size)

    def spans(self, digest: Digest, size: int) -> tuple[Span, ...]:
        """Return the parts to send of content of `size` bytes, in the order of the request.

        The tuple is empty if the whole content is to be sent. That is also the case if the parts together are larger
        than the content: then one piece is cheaper for both sides.

        Raises:
            HTTPError: 416, the content has no byte of any range.
        """
        ranges = self._ranges(digest)
        spans = tuple(each.within(size) for each in ranges if each.is_within(size))
        if ranges and not spans:
            raise range_error(Unsatisfiable(ranges[0], size))
        return spans if sum(each.length for each in spans) <= size else ()

    def _ranges(self, digest: Digest) -> tuple[ByteRange, ...]:
        if self.is_head or not if_range_matches(self.header(b"if-range"), digest):
            return ()
        return parse_ranges(self.header(b"range"))

    def is_bodiless(self, digest: Digest) -> bool:
        """Return whether the response has no body: to a HEAD request, or because the client has the content already."""
        return self.is_head or is_not_modified(self.header(b"if-none-match"), digest)

    async def send_head(self, descriptor: Descriptor, more_headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Send a response without a body: 304 if the client has the content already, else 200 with `more_headers`."""
        if not await self.send_not_modified(descriptor.digest):
            headers = _content_headers(descriptor, Span.whole(descriptor.size), is_partial=False)
            await self._send_start(200, [*headers, *more_headers], _END)

    async def send_not_modified(self, digest: Digest) -> bool:
        """Send 304 if the client has the content already. Return whether it has."""
        if not is_not_modified(self.header(b"if-none-match"), digest):
            return False
        etag = entity_tag(digest).encode()
        await self._send_start(304, [(b"etag", etag), (b"docker-content-digest", digest.encode())], _END)
        return True

    async def start(
        self,
        descriptor: Descriptor,
        span: Span,
        *,
        is_partial: bool,
        has_length: bool = True,
        more_headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Send the status and headers of a response with content.

        Args:
            descriptor: The content.
            span: The bytes that follow.
            is_partial: Whether the status is 206 instead of 200.
            has_length: Whether the response has a Content-Length. Without it, the client reads one stream and does not
                request parallel parts. A response over HTTP/1.0 always has it, because it cannot be chunked.
            more_headers: Headers in addition to those that describe the content.
        """
        is_chunked = not has_length and self._can_chunk
        self._choose_socket_writer(span.length > _MAX_COPY and not is_chunked)
        headers = _content_headers(descriptor, span, is_partial=is_partial)
        if is_chunked:
            headers = [each for each in headers if each[0] != b"content-length"]
        await self._send_start(206 if is_partial else 200, [*headers, *more_headers])

    async def start_parts(self, descriptor: Descriptor, parts: MultipartByteranges) -> None:
        """Send the status and headers of a response with several parts. Their framing and their bytes follow."""
        self._choose_socket_writer(parts.length > _MAX_COPY)
        body = replace(descriptor, media_type=parts.content_type)
        await self._send_start(206, _content_headers(body, Span.whole(parts.length), is_partial=False))

    def _choose_socket_writer(self, is_large: bool) -> None:
        """Drop the socket writer if the body is small, or if it fails now: later, that would cut the response off."""
        if self.socket_writer is not None and not (is_large and self.socket_writer.prepare()):
            self.socket_writer = None

    async def send_whole(self, descriptor: Descriptor, span: Span, data: bytes, *, is_partial: bool) -> None:
        """Send a complete response with content. `data` are the bytes of `span`."""
        headers = _content_headers(descriptor, span, is_partial=is_partial)
        await self._send_start(206 if is_partial else 200, headers, {**_END, "body": data})

    async def send(self, data: bytes | memoryview) -> None:
        """Send a piece of the body. `data` may be overwritten afterwards."""
        if self.socket_writer is not None and len(data) > _MAX_COPY:
            await self.socket_writer.send(data)
        else:
            await self._send_in_time({"type": "http.response.body", "body": bytes(data), "more_body": True})

    async def send_path(self, path: str) -> None:
        """Let the server send the file at `path` as the whole body. Only if `can_send_path`.

        The server does not report when it has opened the file. It only reports when the response is complete: by the
        disconnect message, which cancels the work on the request. This method never returns, so that the caller keeps
        the file open until it is cancelled.
        """
        await self._send_in_time({"type": "http.response.pathsend", "path": path})
        await asyncio.Event().wait()

    async def end(self) -> None:
        """Send the end of the body."""
        await self._send_in_time(_END)

    async def _send_json(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        all_headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in all_headers.items()]
        await self._send_start(status, raw, {**_END, "body": b"" if self.is_head else body})

    async def _send_start(self, status: int, headers: list[tuple[bytes, bytes]], *rest: Message) -> None:
        self.has_started = True
        start: Message = {
            "type": "http.response.start",
            "status": status,
            "headers": [_VERSION_HEADER, *headers, *(self.more_headers if status < _ERRORS else ())],
        }
        await self._send_in_time(start, *rest)

    async def _send_in_time(self, *messages: Message) -> None:
        async with Deadline(self._reader_timeout):
            for message in messages:
                await self._send(message)


def range_error(error: Unsatisfiable) -> HTTPError:
    """Return the response to a range that the content does not have."""
    return HTTPError(416, SIZE_INVALID, str(error), {"Content-Range": f"bytes */{error.size}"})


def _content_headers(descriptor: Descriptor, span: Span, *, is_partial: bool) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"content-type", descriptor.media_type.encode("latin-1")),
        (b"content-length", b"%d" % span.length),
        (b"docker-content-digest", descriptor.digest.encode()),
        (b"etag", entity_tag(descriptor.digest).encode()),
        (b"accept-ranges", b"bytes"),
    ]
    if not is_manifest(descriptor.media_type):
        headers.append((b"content-encoding", b"identity"))  # gzip middleware of a host agent then skips it
    if is_partial:
        headers.append((b"content-range", span.content_range.encode()))
    return headers
