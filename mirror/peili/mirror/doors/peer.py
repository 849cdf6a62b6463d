"""The peer door answers other hosts. It sends only what this host's store has, and never asks other hosts, so that a
request cannot loop. Content that is still arriving is sent only to hosts that ask for it (see peer_api/keys.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing, nullcontext
from functools import partial

from starlette.requests import HTTPConnection
from starlette.routing import Route
from starlette.types import Scope
from typing_extensions import override

from peili.mirror.content.incoming import IncomingTable
from peili.mirror.content.incoming_content import IncomingContent
from peili.mirror.content.intact_store import IntactStore
from peili.mirror.doors.base import Door, requested_descriptor
from peili.mirror.doors.images import ImagesRoute
from peili.mirror.doors.middleware import request_record
from peili.mirror.doors.open_content import OpenContent
from peili.mirror.doors.received import ReceivedRoute
from peili.mirror.doors.response import ResponseWriter
from peili.mirror.doors.stored_content import read_pieces, send_growing, send_stored
from peili.mirror.doors.upload_slots import UploadSlots
from peili.mirror.errors import NotFound
from peili.mirror.metrics.counters import FROM_STORE
from peili.mirror.oci.ranges import Span
from peili.mirror.oci.references import Descriptor, Digest, detect_media_type
from peili.mirror.oci.requests import CHECKED, Endpoint, Target, parse_query
from peili.mirror.peer_api.keys import IN_FLIGHT_HEADER, InFlight, accepts_in_flight
from peili.mirror.plugins.calls import call, shows_in_flight
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.deadlines import Deadline
from peili.mirror.tls.identities import has_proven_itself

_IN_FLIGHT = IN_FLIGHT_HEADER.lower().encode()


class PeerDoor(Door):
    """The door for other hosts.

    Args:
        context: See `Door`.
        default_registry: See `Door`.
        incoming: What this host receives.
        store: The store, which learns here if its content is damaged.

    Attributes:
        upload_slots: The uploads that run.
    """

    tells_reasons = False

    def __init__(
        self, context: Context, default_registry: str | None, incoming: IncomingTable, store: IntactStore
    ) -> None:
        super().__init__(context, default_registry)
        self._store = store
        self.upload_slots = UploadSlots(context.limits, context.limited)
        self._incoming = incoming

    def routes(self) -> Sequence[Route]:
        """Return the routes of requests that are not for content."""
        received = ReceivedRoute(self.context, self._incoming.received, self._store)
        return (received.route(), ImagesRoute(self.context).route())

    @override
    async def send_content(self, target: Target, response: ResponseWriter, scope: Scope) -> None:
        request_record(scope).source = FROM_STORE
        store, digest = self.context.store, target.digest
        client = scope.get("client")
        host = client[0] if client else ""
        accepts_partial = digest is not None and accepts_in_flight(response.header(_IN_FLIGHT))
        await self._require_right(target, scope)
        if digest is None:
            resolve = partial(store.resolve, self.reference(target))
            digest = (await call(resolve, self.context, "the store", allowed=(Exception,))).digest
        try:
            # Also for a tag: the store's record of a tag may differ from what the manifest itself says.
            stored = await call(partial(store.describe, digest), self.context, "the store", allowed=(Exception,))
        except NotFound:
            if not accepts_partial:
                raise
            slot = nullcontext() if response.is_head else self.upload_slots.acquire(host, digest, is_in_flight=True)
            with slot:
                await self._send_in_flight(target, digest, response, shows_right=_shows_right(target, scope))
            return
        descriptor = requested_descriptor(target, stored)
        if response.is_head:
            await response.send_head(descriptor)
            return
        with self.upload_slots.acquire(host, digest):
            await send_stored(response, self.opener, descriptor)

    async def _require_right(self, target: Target, scope: Scope) -> None:
        """Raise NotFound if the request is for content that only some may have, and does not show that this one may."""
        if await self.context.is_open(target.digest or self.reference(target)):
            return
        if not _shows_right(target, scope):
            raise NotFound(f"{target.name} is not for everybody")

    @override
    async def require_list(self, target: Target, scope: Scope) -> None:
        is_covered = target.registry is not None and self.context.covers(target.registry, target.repository)
        if is_covered and not has_proven_itself(HTTPConnection(scope)):
            raise NotFound(f"the tags of {target.name} are not for everybody")

    async def _send_in_flight(
        self, target: Target, digest: Digest, response: ResponseWriter, *, shows_right: bool
    ) -> None:
        """Send content that is not whole yet. A request that shows no right gets it only while it is open.

        A blob is sent as it arrives. Nobody has verified its bytes: the receiver must. A manifest is sent when all of
        it has arrived, because only the whole shows its media type; it is verified.
        """
        is_manifest = target.endpoint is Endpoint.MANIFEST
        incoming = self._incoming.get(digest)
        if incoming is None:
            if is_manifest:
                raise NotFound(f"{digest} is not expected here")
            async with await self.opener.open(digest, None) as content:
                state = InFlight(content.available, content.size, (self.context.identity,))
                await send_growing(response, content, digest, state)
            return
        open_stored = partial(self.context.store.open, digest, partial=True)
        may_read = None if shows_right else partial(self.context.is_open, digest)
        arriving = IncomingContent(incoming, open_stored if shows_in_flight(self.context) else None, may_read)
        async with OpenContent(arriving, digest, b"", self.context) as content:
            await self._wait_until_known(arriving, 0 if is_manifest else _first_byte(response, digest))
            if is_manifest:
                await self._send_manifest(target, digest, response, content)
            else:
                state = InFlight(arriving.available, arriving.size).combined_with(incoming.state())
                await send_growing(response, content, digest, state)

    async def _wait_until_known(self, arriving: IncomingContent, first: int) -> None:
        """Wait until the size is known, so that the response can begin. Raises NotFound."""
        wait = Deadline(self.context.limits.wait_timeout)
        try:
            async with wait:
                await arriving.prepare(first)
        except TimeoutError as error:
            self.context.limited("wait_timeout")
            raise NotFound("the content has not arrived in time") from error

    async def _send_manifest(
        self, target: Target, digest: Digest, response: ResponseWriter, content: OpenContent
    ) -> None:
        """Wait for all of a manifest, and send it. Raises NotFound if it is wrong, or too large for a manifest."""
        size = content.size or 0
        if not 0 < size <= self.context.limits.manifest_size:
            raise NotFound(f"{size} bytes are no manifest")
        data = bytearray()
        while len(data) < size:
            await content.wait(len(data))
            span = Span(len(data), min(content.available, size), size)
            async with aclosing(read_pieces(content, span)) as pieces:
                async for piece in pieces:
                    data += piece
        if Digest.of(memoryview(data), digest.algorithm) != digest:
            raise NotFound(f"wrong bytes of {digest} have arrived")
        descriptor = requested_descriptor(target, Descriptor(detect_media_type(bytes(data)), digest, size))
        if response.is_head:
            await response.send_head(descriptor)
        elif not await response.send_not_modified(digest):
            await response.send_whole(descriptor, Span.whole(size), bytes(data), is_partial=False)


def _shows_right(target: Target, scope: Scope) -> bool:
    """Return whether a request is from a host that is known, and that has checked the rights of its requester.

    To be told what a tag means, the first is enough: that is no content yet.
    """
    is_checked = parse_query(scope).get(CHECKED) == "1"
    tells_only = target.digest is None and scope["method"] == "HEAD"
    return has_proven_itself(HTTPConnection(scope)) and (is_checked or tells_only)


def _first_byte(response: ResponseWriter, digest: Digest) -> int:
    """Return the first byte that a request is for; 0 if that depends on the size of the content."""
    wanted = response.range(digest)
    return 0 if wanted is None or wanted.first is None else wanted.first
