"""The peer door answers other hosts. It sends only what this host's store has, and never asks other hosts, so that a
request cannot loop. Content that is still arriving is sent only to hosts that ask for it (see peer_api/keys.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from functools import partial

from starlette.types import Scope
from typing_extensions import override

from peili.mirror.doors.base import Door, requested_descriptor
from peili.mirror.doors.middleware import request_record
from peili.mirror.doors.response import ResponseWriter
from peili.mirror.doors.stored_content import send_growing, send_stored
from peili.mirror.errors import NotFound
from peili.mirror.limits import Limits
from peili.mirror.metrics.counters import FROM_STORE
from peili.mirror.oci.references import Digest
from peili.mirror.oci.requests import TOOMANYREQUESTS, Endpoint, HTTPError, Target
from peili.mirror.peer_api.keys import IN_FLIGHT_HEADER, accepts_in_flight
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.interfaces import Context

_IN_FLIGHT = IN_FLIGHT_HEADER.lower().encode()


class UploadSlots:
    """Bounds the uploads that run at the same time.

    ``limits.uploads`` in total, ``limits.uploads_per_peer`` per host. Of content that is still arriving,
    ``limits.in_flight_uploads`` in total, ``limits.children`` per blob.

    Args:
        limits: See above.
        limited: Called with the name of the limit for each upload that is refused.
    """

    def __init__(self, limits: Limits, limited: Callable[[str], None]) -> None:
        self._limits = limits
        self._limited = limited
        self._uploads_to: Counter[str] = Counter()
        self._children_of: Counter[Digest] = Counter()

    @contextmanager
    def acquire(self, host: str, *, in_flight: Digest | None = None) -> Generator[None]:
        """Hold a slot for an upload to `host`; `in_flight` is the digest of content that is still arriving.

        Raises:
            HTTPError: 429, all slots are in use.
        """
        limit = self._exhausted_limit(host, in_flight)
        if limit is not None:
            self._limited(limit)
            raise HTTPError(429, TOOMANYREQUESTS, "too many uploads at the same time", {"Retry-After": "1"})
        self._uploads_to[host] += 1
        if in_flight is not None:
            self._children_of[in_flight] += 1
        try:
            yield
        finally:
            self._uploads_to[host] -= 1
            self._uploads_to += Counter()  # removes the zeros
            if in_flight is not None:
                self._children_of[in_flight] -= 1
                self._children_of += Counter()

    @property
    def in_use(self) -> int:
        """The number of uploads that run now."""
        return self._uploads_to.total()

    def _exhausted_limit(self, host: str, in_flight: Digest | None) -> str | None:
        limits = self._limits
        if self._uploads_to.total() >= limits.uploads:
            return "uploads"
        if self._uploads_to[host] >= limits.uploads_per_peer:
            return "uploads_per_peer"
        if in_flight is None:
            return None
        if self._children_of.total() >= limits.in_flight_uploads:
            return "in_flight_uploads"
        return "children" if self._children_of[in_flight] >= limits.children else None


class PeerDoor(Door):
    """The door for other hosts.

    Attributes:
        upload_slots: The uploads that run.
    """

    def __init__(self, context: Context, default_registry: str | None) -> None:
        super().__init__(context, default_registry)
        self.upload_slots = UploadSlots(context.limits, context.limited)

    @override
    async def send_content(self, target: Target, response: ResponseWriter, scope: Scope) -> None:
        request_record(scope).source = FROM_STORE
        store, digest = self.context.store, target.digest
        client = scope.get("client")
        host = client[0] if client else ""
        if digest is None:
            resolve = partial(store.resolve, self.reference(target))
            digest = (await call(resolve, self.context, "the store", allowed=(Exception,))).digest
        try:
            # Also for a tag: the store's record of a tag may differ from what the manifest itself says.
            stored = await call(partial(store.describe, digest), self.context, "the store", allowed=(Exception,))
        except NotFound:
            if target.endpoint is not Endpoint.BLOB or not accepts_in_flight(response.header(_IN_FLIGHT)):
                raise
            await self._send_in_flight(digest, response, host)
            return
        descriptor = requested_descriptor(target, stored)
        if response.is_head:
            await response.send_head(descriptor)
            return
        with self.upload_slots.acquire(host):
            await send_stored(response, self.opener, descriptor)

    async def _send_in_flight(self, digest: Digest, response: ResponseWriter, host: str) -> None:
        """Send a blob that is not whole yet, as it arrives. Nobody has verified its bytes: the receiver must."""
        slot = nullcontext() if response.is_head else self.upload_slots.acquire(host, in_flight=digest)
        with slot:
            await send_growing(response, self.opener, digest)
