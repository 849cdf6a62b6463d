"""Answers a request over ASGI: status and headers once, then the body, and HEAD without one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace

from starlette.types import Message, Scope, Send

from peili.mirror.limits import KIB
from peili.mirror.oci.conditions import entity_tag, none_match, range_applies
from peili.mirror.oci.media_types import is_manifest
from peili.mirror.oci.multipart import Multipart
from peili.mirror.oci.ranges import ByteRange, Span, Unsatisfiable, parse_ranges
from peili.mirror.oci.references import Descriptor, Digest
from peili.mirror.oci.refusal import SIZE_INVALID, HTTPError
from peili.mirror.server.socket_writer import get_socket_writer
from peili.mirror.support.deadlines import Deadline

_VERSION = (b"docker-distribution-api-version", b"registry/2.0")
_SMALL = 64 * KIB
"""Bytes up to which copying costs less than going past ASGI."""
_END: Message = {"type": "http.response.body", "body": b"", "more_body": False}


class ResponseWriter:
    """The answer to one request. `started` once its status line was sent: from then on there is no other answer.

    Content is answered with `begin`, the body's bytes, and `end`. A body may go by `socket_writer`, where there is one;
    once it began, whether there is stands. One that can't be had to its end is left unfinished: the server closes the
    connection, which tells the client. A client that takes nothing for `reader_timeout` seconds is left (TimeoutError).
    """

    def __init__(self, scope: Scope, send: Send, reader_timeout: float) -> None:
        self.wants_body: bool = scope["method"] != "HEAD"
        self.started = False
        self.socket_writer = get_socket_writer(send)
        if self.socket_writer is not None:
            self.socket_writer.give_up_after(reader_timeout)
        self.takes_paths = "http.response.pathsend" in (scope.get("extensions") or ())
        self._headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # of equal ones the first counts
        self._send = send
        self._chunks = scope.get("http_version", "1.1") != "1.0"
        self._reader_timeout = reader_timeout

    def header(self, name: bytes) -> str | None:
        """The value of a header of the request; `name` in lower case."""
        value = self._headers.get(name)
        return None if value is None else value.decode("latin-1")

    async def json(self, document: object, headers: Mapping[str, str] | None = None) -> None:
        """Answer 200 with `document`."""
        await self._document(200, "application/json", json.dumps(document).encode(), headers or {})

    async def refuse(self, refusal: HTTPError) -> None:
        """Answer with an error."""
        await self._document(refusal.status, "application/json", refusal.body(), refusal.headers)

    def range(self, digest: Digest) -> ByteRange | None:
        """The one range that has to be honoured; None: the whole."""
        ranges = self._ranges(digest)
        return ranges[0] if len(ranges) == 1 else None

    def span(self, digest: Digest, size: int) -> Span:
        """The bytes to send of content of `size` bytes, in one piece. Raises HTTPError (416)."""
        spans = self.spans(digest, size)
        return spans[0] if len(spans) == 1 else Span.whole(size)

    def spans(self, digest: Digest, size: int) -> tuple[Span, ...]:
        """The parts to send of content of `size` bytes, as they were asked for; none: the whole. Raises HTTPError.

        Parts that together are more than the whole are not sent: who asks for that has it cheaper in one piece.
        """
        wanted = self._ranges(digest)
        spans = tuple(each.within(size) for each in wanted if each.is_within(size))
        if wanted and not spans:
            raise out_of_range(Unsatisfiable(wanted[0], size))
        return spans if sum(each.length for each in spans) <= size else ()

    def _ranges(self, digest: Digest) -> tuple[ByteRange, ...]:
        if not self.wants_body or not range_applies(self.header(b"if-range"), digest):
            return ()
        return parse_ranges(self.header(b"range"))

    def is_bodiless(self, digest: Digest) -> bool:
        """Whether an answer with content has no body: to HEAD, or because the client has the content already."""
        return not self.wants_body or not none_match(self.header(b"if-none-match"), digest)

    async def not_modified(self, digest: Digest) -> bool:
        """Answer 304 where the client has the content already; whether that was done."""
        if none_match(self.header(b"if-none-match"), digest):
            return False
        etag = entity_tag(digest).encode()
        await self._start(304, [(b"etag", etag), (b"docker-content-digest", digest.encode())], _END)
        return True

    async def begin(self, descriptor: Descriptor, span: Span, *, partial: bool, one_stream: bool = False) -> bool:
        """Answer 200, or 206 where the answer is `partial`; whether the bytes of `span` and `end` have to follow.

        They have not where the client asked for the head only. `one_stream`: without a Content-Length, so that
        the client does not go on to ask for parallel parts (not for HTTP/1.0, which has no other way to tell the end).
        """
        chunked = one_stream and self.wants_body and self._chunks
        self._decide_on_outlet(self.wants_body and span.length > _SMALL and not chunked)
        rest = () if self.wants_body else (_END,)
        headers = _about(descriptor, span, partial=partial)
        if chunked:
            headers = [each for each in headers if each[0] != b"content-length"]
        await self._start(206 if partial else 200, headers, *rest)
        return self.wants_body

    async def begin_parts(self, descriptor: Descriptor, parts: Multipart) -> None:
        """Answer 206 with several `parts`; what stands between them, their bytes and `end` have to follow."""
        self._decide_on_outlet(parts.length > _SMALL)
        whole = replace(descriptor, media_type=parts.content_type)
        await self._start(206, _about(whole, Span.whole(parts.length), partial=False))

    def _decide_on_outlet(self, large: bool) -> None:
        if self.socket_writer is not None and not (large and self.socket_writer.open()):
            self.socket_writer = None  # found out now: what fails once the status line was sent cuts the answer off

    async def whole(self, descriptor: Descriptor, span: Span, data: bytes, *, partial: bool) -> None:
        """Answer as `begin` does, with `data`, which are the bytes of `span`. A client that wants no body gets none."""
        rest: Message = {**_END, "body": data if self.wants_body else b""}
        await self._start(206 if partial else 200, _about(descriptor, span, partial=partial), rest)

    async def send(self, data: bytes | memoryview) -> None:
        """More of the body; `data` may be overwritten once this returns."""
        if self.socket_writer is not None and len(data) > _SMALL:
            await self.socket_writer.send(data)
        else:
            await self._in_time({"type": "http.response.body", "body": bytes(data), "more_body": True})

    async def send_path(self, path: str) -> None:
        """Let the server send the file at `path` as the whole body; only where it `takes_paths`.

        When it opens the file it does not say, only when it is done: by the disconnect that follows each answer, and
        that ends the work on the request. Until then this waits, so that what `path` stands for remains.
        """
        await self._in_time({"type": "http.response.pathsend", "path": path})
        await asyncio.Event().wait()

    async def end(self) -> None:
        """All of the body was sent."""
        await self._in_time(_END)

    async def _document(self, status: int, media_type: str, body: bytes, headers: Mapping[str, str]) -> None:
        given = {"Content-Type": media_type, "Content-Length": str(len(body)), **headers}
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()]
        rest: Message = {**_END, "body": body if self.wants_body else b""}
        await self._start(status, raw, rest)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]], *rest: Message) -> None:
        self.started = True
        await self._in_time({"type": "http.response.start", "status": status, "headers": [_VERSION, *headers]}, *rest)

    async def _in_time(self, *messages: Message) -> None:
        async with Deadline(self._reader_timeout):
            for message in messages:
                await self._send(message)


def out_of_range(error: Unsatisfiable) -> HTTPError:
    """The answer to who asks for a range that lies outside of the content."""
    return HTTPError(416, SIZE_INVALID, str(error), {"Content-Range": f"bytes */{error.size}"})


def _about(descriptor: Descriptor, span: Span, *, partial: bool) -> list[tuple[bytes, bytes]]:
    """The headers of an answer that has these bytes of content."""
    headers = [
        (b"content-type", descriptor.media_type.encode("latin-1")),
        (b"content-length", b"%d" % span.length),
        (b"docker-content-digest", descriptor.digest.encode()),
        (b"etag", entity_tag(descriptor.digest).encode()),
        (b"accept-ranges", b"bytes"),
    ]
    if not is_manifest(descriptor.media_type):
        headers.append((b"content-encoding", b"identity"))  # a host's gzip middleware leaves it alone then
    if partial:
        headers.append((b"content-range", span.content_range.encode()))
    return headers
