"""Answers other hosts that ask which bytes this host received (peer_api/received.py).

They ask if they have got wrong bytes. So this host notices here if it has damaged content, and gives it to nobody then.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from peili.mirror.content.intact_store import IntactStore
from peili.mirror.content.received import ReceivedRecords
from peili.mirror.errors import Aborted, NotFound, Unavailable
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.messages import JSON_HEADERS
from peili.mirror.peer_api.received import (
    BLOCK,
    MAX_PREFIXES,
    PREFIX_LENGTH,
    RECEIVED_ROUTE,
    ReceivedBytes,
    encode_received,
)
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.content import Content
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.newest import put_newest
from peili.mirror.tls.identities import has_proven_itself

_READ_TIMEOUT = 10.0
"""Seconds for reading the content of the store. Nobody waits longer for the answer."""
_MAX_READ = 4
"""Of how much content it is remembered what was read. The digests of 32 GiB take 2 MiB."""
_COMMIT_TIME = 1.0
"""Seconds in which a runtime commits content, even if a byte has changed on the disk since it was written."""


class ReceivedRoute:
    """The route of the peer door that says what this host received.

    What the runtime fetched from upstream itself is read from the store, for one request at a time.

    Args:
        context: The context of the peer door.
        records: What this host received through the relay.
        store: The store. If it has the whole content with wrong bytes, it is told so.
    """

    def __init__(self, context: Context, records: ReceivedRecords, store: IntactStore) -> None:
        self._store = store
        self._context = context
        self._records = records
        self._reading = asyncio.Semaphore()
        self._read: dict[Digest, tuple[float, ReceivedBytes | None]] = {}  # what was read last, and when that ended

    def route(self) -> Route:
        """Return the route for the peer door."""
        return Route(RECEIVED_ROUTE, self._answer, methods=["GET"])

    async def _answer(self, request: Request) -> Response:
        try:
            digest = Digest(request.path_params["digest"])
        except ValueError:
            return Response(status_code=400)
        if not (has_proven_itself(request) or await self._context.is_open(digest)):
            return Response(status_code=404)
        attempts = self._records.get(digest)
        if request.query_params.get("stored") == "no":  # a transfer stands still until this is answered
            return Response(encode_received(attempts), status_code=200 if attempts else 404, headers=JSON_HEADERS)
        stored = await self._stored(digest)
        known = max((len(each.prefixes) for each in attempts), default=0)
        if stored is not None and self._store.is_damaged(digest):
            stored.sources = [(0, None)]  # whoever sent these bytes: this host has changed them
            attempts = (*attempts, stored)
        elif stored is not None and len(stored.prefixes) > known:
            last = attempts[-1] if attempts else ReceivedBytes()
            stored.sources = [*last.sources, (len(last.prefixes) * BLOCK, None)]
            attempts = (*attempts, stored)
        if not attempts:
            return Response(status_code=404)
        return Response(encode_received(attempts), headers=JSON_HEADERS)

    async def _stored(self, digest: Digest) -> ReceivedBytes | None:
        """Read what the store has of `digest`. Return None if it has nothing, or takes too long.

        All hosts behind this one may ask at the same moment. Those that wait meanwhile get what was read for the first.
        """
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        try:
            async with Deadline(_READ_TIMEOUT), self._reading:
                ended, received = self._read.get(digest, (float("-inf"), None))
                if ended < arrived:
                    received = await self._read_in_time(digest)
                    put_newest(self._read, digest, (loop.time(), received), _MAX_READ)
                return None if received is None else replace(received)
        except TimeoutError:
            return None

    async def _read_in_time(self, digest: Digest) -> ReceivedBytes | None:
        try:
            return await call(
                lambda: self._read_store(digest),
                self._context,
                "the store",
                about=digest,
                seconds=_READ_TIMEOUT,
                allowed=(NotFound, Aborted, Unavailable),
            )
        except (NotFound, Aborted, Unavailable):
            return None

    async def _read_store(self, digest: Digest) -> ReceivedBytes:
        received, running = ReceivedBytes(), hashlib.new(digest.algorithm)
        prefixes, buffer, offset = list[str](), memoryview(bytearray(BLOCK)), 0
        async with await self._store.open_unchecked(digest) as content:
            while offset < content.available and len(prefixes) < MAX_PREFIXES:
                count = await content.readinto(offset, buffer[: BLOCK - offset % BLOCK])
                if not count:
                    break
                await asyncio.to_thread(running.update, buffer[:count])
                offset += count
                if offset % BLOCK == 0 or offset == content.size:
                    prefixes.append(running.hexdigest()[:PREFIX_LENGTH])
            if offset == content.size and running.hexdigest() != digest.encoded and await _is_whole(content):
                self._note_damaged(digest)
        received.prefixes = prefixes
        return received

    def _note_damaged(self, digest: Digest) -> None:
        if not self._store.is_damaged(digest):
            self._store.note_damaged(digest)
            self._context.log.warning("%s: this host's copy has wrong bytes; no other host gets it", digest)


async def _is_whole(content: Content) -> bool:
    """Return whether the runtime has committed `content`, of which all bytes are there."""
    try:
        async with asyncio.timeout(_COMMIT_TIME):
            await content.wait(content.available)
    except (TimeoutError, Aborted):
        pass
    return content.complete
