"""The peer door answers other hosts. It sends only what this host's store has whole, and never asks other hosts, so
that a request cannot loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial

from starlette.types import Scope
from typing_extensions import override

from peili.mirror.doors.base import Door, requested_descriptor
from peili.mirror.doors.middleware import request_record
from peili.mirror.doors.response import ResponseWriter
from peili.mirror.doors.stored_content import send_stored
from peili.mirror.limits import Limits
from peili.mirror.metrics.counters import FROM_STORE
from peili.mirror.oci.http_errors import TOOMANYREQUESTS, HTTPError
from peili.mirror.oci.requests import Target
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.interfaces import Context


class UploadSlots:
    """Bounds the uploads that run at the same time: ``limits.uploads`` in total, ``limits.uploads_per_peer`` per host.

    Args:
        limits: See above.
        limited: Called with the name of the limit for each upload that is refused.
    """

    def __init__(self, limits: Limits, limited: Callable[[str], None]) -> None:
        self._limits = limits
        self._limited = limited
        self._uploads_to: Counter[str] = Counter()

    @contextmanager
    def acquire(self, host: str) -> Generator[None]:
        """Hold a slot for an upload to `host`.

        Raises:
            HTTPError: 429, all slots are in use.
        """
        limit = self._exhausted_limit(host)
        if limit is not None:
            self._limited(limit)
            raise HTTPError(429, TOOMANYREQUESTS, "too many uploads at the same time", {"Retry-After": "1"})
        self._uploads_to[host] += 1
        try:
            yield
        finally:
            self._uploads_to[host] -= 1
            self._uploads_to += Counter()  # removes the zeros

    @property
    def in_use(self) -> int:
        """The number of uploads that run now."""
        return self._uploads_to.total()

    def _exhausted_limit(self, host: str) -> str | None:
        if self._uploads_to.total() >= self._limits.uploads:
            return "uploads"
        return "uploads_per_peer" if self._uploads_to[host] >= self._limits.uploads_per_peer else None


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
        if digest is None:
            resolve = partial(store.resolve, self.reference(target))
            digest = (await call(resolve, self.context, "the store", allowed=(Exception,))).digest
        # Also for a tag: the store's record of a tag may differ from what the manifest itself says.
        stored = await call(partial(store.describe, digest), self.context, "the store", allowed=(Exception,))
        descriptor = requested_descriptor(target, stored)
        if response.is_head:
            await response.send_head(descriptor)
            return
        client = scope.get("client")
        with self.upload_slots.acquire(client[0] if client else ""):
            await send_stored(response, self.opener, descriptor)
