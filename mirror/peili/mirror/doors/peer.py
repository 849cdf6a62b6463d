"""The peer door answers other hosts. It sends only what this host's store has, and never asks other hosts, so that a
request cannot loop. Content that is still arriving is sent only to hosts that ask for it (see peer_api/keys.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from functools import partial

from starlette.requests import HTTPConnection
from starlette.routing import Route
from starlette.types import Scope
from typing_extensions import override

from peili.mirror.content.incoming import IncomingRegistry
from peili.mirror.content.incoming_content import IncomingContent
from peili.mirror.content.sound_store import SoundStore
from peili.mirror.doors.base import Door, requested_descriptor
from peili.mirror.doors.images import ImagesRoute
from peili.mirror.doors.middleware import request_record
from peili.mirror.doors.open_content import OpenContent
from peili.mirror.doors.received import ReceivedRoute
from peili.mirror.doors.response import ResponseWriter
from peili.mirror.doors.stored_content import read_pieces, send_growing, send_stored
from peili.mirror.errors import NotFound
from peili.mirror.limits import Limits
from peili.mirror.metrics.counters import FROM_STORE
from peili.mirror.oci.ranges import Span
from peili.mirror.oci.references import Descriptor, Digest, detect_media_type
from peili.mirror.oci.requests import CHECKED, TOOMANYREQUESTS, Endpoint, HTTPError, Target, parse_query
from peili.mirror.peer_api.keys import IN_FLIGHT_HEADER, InFlight, accepts_in_flight
from peili.mirror.plugins.calls import call, shows_in_flight
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.deadlines import Deadline
from peili.mirror.tls.identities import has_proven_itself

_IN_FLIGHT = IN_FLIGHT_HEADER.lower().encode()


class UploadSlots:
    """Bounds the uploads that run at the same time.

    ``limits.uploads`` in total, ``limits.uploads_per_peer`` per host, ``limits.uploads_per_blob`` per digest. Of
    content that is still arriving, ``limits.in_flight_uploads`` in total, ``limits.children`` per digest. If the bytes
    per second are limited, each upload gets at least ``limits.min_rate``, below which the other host would replace this
    one.

    Args:
        limits: See above.
        limited: Called with the name of the limit for each upload that is refused.
    """

    def __init__(self, limits: Limits, limited: Callable[[str], None]) -> None:
        self._limits = limits
        self._limited = limited
        self._uploads_to: Counter[str] = Counter()
        self._uploads_of: Counter[Digest] = Counter()
        self._children_of: Counter[Digest] = Counter()

    @contextmanager
    def acquire(self, host: str, digest: Digest, *, is_in_flight: bool = False) -> Generator[None]:
        """Hold a slot for an upload of `digest` to `host`.

        Args:
            host: The address of the host.
            digest: The content.
            is_in_flight: Whether it is still arriving.

        Raises:
            HTTPError: 429, all slots are in use.
        """
        limit = self._exhausted_limit(host, digest, is_in_flight=is_in_flight)
        if limit is not None:
            self._limited(limit)
            raise HTTPError(429, TOOMANYREQUESTS, "too many uploads at the same time", {"Retry-After": "1"})
        self._count(host, digest, 1, is_in_flight=is_in_flight)
        try:
            yield
        finally:
            self._count(host, digest, -1, is_in_flight=is_in_flight)
            for counter in (self._uploads_to, self._uploads_of, self._children_of):
                counter += Counter()  # removes the zeros, in place

    def _count(self, host: str, digest: Digest, change: int, *, is_in_flight: bool) -> None:
        self._uploads_to[host] += change
        self._uploads_of[digest] += change
        self._children_of[digest] += change if is_in_flight else 0

    @property
    def in_use(self) -> int:
        """The number of uploads that run now."""
        return self._uploads_to.total()

    @property
    def in_flight(self) -> int:
        """The number of uploads of content that was still arriving when they began."""
        return self._children_of.total()

    def _exhausted_limit(self, host: str, digest: Digest, *, is_in_flight: bool) -> str | None:
        limits, total, to_host = self._limits, self._uploads_to.total(), self._uploads_to[host]
        bounds = [
            ("uploads", total, limits.uploads),
            ("uploads_per_peer", to_host, limits.uploads_per_peer),
            ("uploads_per_blob", self._uploads_of[digest], limits.uploads_per_blob),
            ("upload_rate", total, limits.upload_rate // limits.min_rate),
            ("upload_rate_per_peer", to_host, limits.upload_rate_per_peer // limits.min_rate),
        ]
        if is_in_flight:
            bounds.append(("in_flight_uploads", self._children_of.total(), limits.in_flight_uploads))
            bounds.append(("children", self._children_of[digest], limits.children))
        return next((name for name, count, most in bounds if count >= max(1, most)), None)


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
        self, context: Context, default_registry: str | None, incoming: IncomingRegistry, store: SoundStore
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
