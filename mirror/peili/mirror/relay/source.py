"""One holder's answer to a request for content, checked for being what was asked for, and watched while it comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import cast

import httpx

from peili.mirror.errors import PeerUnavailable
from peili.mirror.limits import Limits
from peili.mirror.peerclient import PeerClient, reading
from peili.mirror.peers import (
    FAILED_BROKEN,
    FAILED_BUSY,
    FAILED_REFUSED,
    FAILED_SILENT,
    FAILED_SLOW,
    FAILED_WRONG,
    Peer,
)
from peili.mirror.ranges import ByteRange, Span, parse_content_range
from peili.mirror.references import Digest


class _Pace:
    """How fast a peer sends, counting only the time that it was waited for: a slow reader blames nobody."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bytes = 0
        self._waited = 0.0

    def is_slow(self, count: int, waited: float) -> bool:
        """Note `count` bytes after `waited` seconds; whether the last window full of waiting gave too little."""
        self._bytes += count
        self._waited += waited
        if self._waited < self._limits.rate_window:
            return False
        slow = self._bytes < self._limits.min_rate * self._waited
        self._bytes, self._waited = 0, 0.0
        return slow


class Source:
    """Content on its way from one peer, its first piece in hand. One owner, who calls `aclose`.

    `span` is what the peer will send.
    """

    def __init__(self, peer: Peer, span: Span, pieces: AsyncGenerator[bytes], stack: AsyncExitStack, limits: Limits):
        self.peer = peer
        self.span = span
        self._pieces = pieces
        self._stack = stack
        self._first: bytes | None = None
        self._left = span.length
        self._pace = _Pace(limits)

    @classmethod
    async def open(
        cls,
        client: PeerClient,
        peer: Peer,
        path: str,
        digest: Digest,
        *,
        wanted: ByteRange | None,
        limits: Limits,
    ) -> Source:
        """Ask `peer`; returns once the first bytes are here. Raises PeerUnavailable with the reason."""
        headers = {"Range": str(wanted)} if wanted else {}
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(limits.first_byte_timeout):
                    response = await stack.enter_async_context(
                        client.stream("GET", peer, path, timeout=limits.stall_timeout, headers=headers)
                    )
                    span = _span(peer, response, digest, wanted)
                    # A generator, which httpx's annotation does not say: left open it would outlive the connection.
                    pieces = cast("AsyncGenerator[bytes]", response.aiter_raw())
                    await stack.enter_async_context(aclosing(pieces))
                    source = cls(peer, span, pieces, AsyncExitStack(), limits)
                    source._first = await source.read()
            except TimeoutError as error:
                raise PeerUnavailable(f"peer {peer.id}: no first byte in time", FAILED_SILENT) from error
            source._stack = stack.pop_all()
            return source

    async def read(self) -> bytes:
        """The next bytes, never none before the end of `span`. Raises PeerUnavailable with the reason."""
        if self._first is not None:
            piece, self._first = self._first, None
            return piece
        if self._left == 0:
            return b""
        asked = time.monotonic()
        with reading(self.peer):
            piece = await anext(self._pieces, b"")
            self._left -= len(piece)
            if self._left == 0:
                await anext(self._pieces, b"")  # takes note of the end: only then is the connection kept for reuse
        if self._pace.is_slow(len(piece), time.monotonic() - asked):
            raise PeerUnavailable(f"peer {self.peer.id} sends too slowly", FAILED_SLOW)
        if not piece:
            raise PeerUnavailable(f"peer {self.peer.id} sent less than it said", FAILED_BROKEN)
        return piece

    async def aclose(self) -> None:
        """Free the connection. Idempotent."""
        await self._stack.aclose()


def _span(peer: Peer, response: httpx.Response, digest: Digest, wanted: ByteRange | None) -> Span:
    """What `response` carries. Raises PeerUnavailable where it is not the content, or not the part, asked for."""
    if response.status_code in {429, 503}:
        raise PeerUnavailable(f"peer {peer.id} is busy", FAILED_BUSY)
    if response.status_code not in {200, 206}:
        raise PeerUnavailable(f"peer {peer.id} answered {response.status_code}", FAILED_REFUSED)
    try:
        span = _carried(response, digest)
        asked = wanted.within(span.size) if wanted else Span.whole(span.size)
    except (ValueError, KeyError) as error:
        raise PeerUnavailable(f"peer {peer.id}: not what was asked for: {error}", FAILED_WRONG) from error
    if span != asked:  # it says what it sends, so this is no lie
        carried, part = span.content_range, wanted or "the whole"
        raise PeerUnavailable(f"peer {peer.id} sends {carried} where {part} was asked for", FAILED_REFUSED)
    return span


def _carried(response: httpx.Response, digest: Digest) -> Span:
    """What `response` says it carries. Raises ValueError and KeyError where that can't be, or can't be used."""
    headers = response.headers
    if "transfer-encoding" in headers:
        raise ValueError("its length is not known ahead")
    if headers.get("docker-content-digest", digest) != digest:
        raise ValueError(f"its digest is {headers['docker-content-digest']}")
    if headers.get("content-encoding", "identity") != "identity":
        raise ValueError(f"it is encoded: {headers['content-encoding']}")
    length = int(headers["content-length"])
    whole = response.status_code == 200
    span = Span.whole(length) if whole else parse_content_range(headers.get("content-range", ""))
    if span.length != length:
        raise ValueError(f"{length} bytes came as {span.content_range}")
    return span
