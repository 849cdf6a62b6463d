"""Answers a request over ASGI: status and headers once, then the body, and HEAD without one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, Mapping

from starlette.datastructures import Headers
from starlette.types import Message, Scope, Send

from peili.mirror.doors.conditions import entity_tag, none_match, range_applies
from peili.mirror.doors.refusal import SIZE_INVALID, Refusal
from peili.mirror.mediatypes import is_manifest
from peili.mirror.ranges import ByteRange, Span, Unsatisfiable, parse_range
from peili.mirror.references import Descriptor, Digest

_COMMON = {"Docker-Distribution-API-Version": "registry/2.0"}


class Reply:
    """The answer to one request. `started` once its status line was sent: from then on there is no other answer.

    A body is given as pieces; when they end early nothing more is sent, and the server closes the connection, which
    tells the client that the body is not whole. A client that takes less than a piece in `reader_timeout` seconds
    is left (TimeoutError).
    """

    def __init__(self, scope: Scope, send: Send, reader_timeout: float) -> None:
        self.headers = Headers(scope=scope)
        self.wants_body = scope["method"] != "HEAD"
        self.started = False
        self._send = send
        self._reader_timeout = reader_timeout

    async def json(self, document: object, headers: Mapping[str, str] | None = None) -> None:
        """Answer 200 with `document`."""
        await self._whole(200, "application/json", json.dumps(document).encode(), headers or {})

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with an error."""
        await self._whole(refusal.status, "application/json", refusal.body(), refusal.headers)

    def range(self, digest: Digest) -> ByteRange | None:
        """The range that has to be honoured; None: the whole."""
        if not self.wants_body or not range_applies(self.headers.get("if-range"), digest):
            return None
        return parse_range(self.headers.get("range"))

    def span(self, digest: Digest, size: int) -> Span:
        """The bytes to send of content of `size` bytes. Raises Refusal (416)."""
        wanted = self.range(digest)
        if wanted is None:
            return Span.whole(size)
        try:
            return wanted.within(size)
        except Unsatisfiable as error:
            raise Refusal(416, SIZE_INVALID, str(error), {"Content-Range": f"bytes */{size}"}) from error

    async def not_modified(self, digest: Digest) -> bool:
        """Answer 304 where the client has the content already; whether that was done."""
        if none_match(self.headers.get("if-none-match"), digest):
            return False
        await self._start(304, {"ETag": entity_tag(digest), "Docker-Content-Digest": digest})
        await self._piece(b"", more=False)
        return True

    async def content(self, descriptor: Descriptor, span: Span, pieces: AsyncIterable[bytes], *, partial: bool) -> None:
        """Answer 200, or 206 where the answer is `partial`, with the bytes of `span`; HEAD does not touch `pieces`."""
        headers = {
            "Content-Type": descriptor.media_type,
            "Content-Length": str(span.length),
            "Docker-Content-Digest": descriptor.digest,
            "ETag": entity_tag(descriptor.digest),
            "Accept-Ranges": "bytes",
        }
        if not is_manifest(descriptor.media_type):
            headers["Content-Encoding"] = "identity"  # a host's gzip middleware leaves it alone then
        if partial:
            headers["Content-Range"] = span.content_range
        await self._start(206 if partial else 200, headers)
        sent = 0
        if self.wants_body:
            async for piece in pieces:
                await self._piece(piece, more=True)
                sent += len(piece)
        if sent == span.length or not self.wants_body:
            await self._piece(b"", more=False)

    async def _whole(self, status: int, media_type: str, body: bytes, headers: Mapping[str, str]) -> None:
        await self._start(status, {"Content-Type": media_type, "Content-Length": str(len(body)), **headers})
        await self._piece(body if self.wants_body else b"", more=False)

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in {**_COMMON, **headers}.items()]
        self.started = True
        await self._in_time({"type": "http.response.start", "status": status, "headers": raw})

    async def _piece(self, body: bytes, *, more: bool) -> None:
        await self._in_time({"type": "http.response.body", "body": body, "more_body": more})

    async def _in_time(self, message: Message) -> None:
        async with asyncio.timeout(self._reader_timeout):
            await self._send(message)
