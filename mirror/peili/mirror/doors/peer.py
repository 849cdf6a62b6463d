"""The peer door: for other hosts. Serves only what this host's store holds whole and never asks anyone else, so that a
request cannot loop.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from starlette.types import Scope
from typing_extensions import override

from peili.mirror.doors.base import Door, requested_descriptor
from peili.mirror.doors.request_metrics import request_record
from peili.mirror.doors.response import ResponseWriter
from peili.mirror.doors.stored import send_stored
from peili.mirror.limits import Limits
from peili.mirror.metrics.counters import FROM_STORE, Metrics
from peili.mirror.oci.paths import Target
from peili.mirror.oci.refusal import TOOMANYREQUESTS, HTTPError
from peili.mirror.parts import Parts


class UploadSlots:
    """Counts the uploads under way, in all and for each host, and refuses those above the bound."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._of_host: Counter[str] = Counter()

    @contextmanager
    def slot(self, host: str) -> Generator[None]:
        """Held while `host` is served. Raises HTTPError (429)."""
        reached = self._reached(host)
        if reached is not None:
            self._metrics.limited.add(reached)
            raise HTTPError(429, TOOMANYREQUESTS, "as many uploads as may be are under way", {"Retry-After": "1"})
        self._of_host[host] += 1
        try:
            yield
        finally:
            self._of_host[host] -= 1
            self._of_host += Counter()  # drops those at zero

    @property
    def under_way(self) -> int:
        """How many there are."""
        return self._of_host.total()

    def _reached(self, host: str) -> str | None:
        """The bound that one more upload to `host` would break."""
        if self._of_host.total() >= self._limits.uploads:
            return "uploads"
        return "uploads_per_peer" if self._of_host[host] >= self._limits.uploads_per_peer else None


class PeerDoor(Door):
    """Answers other hosts from this host's store."""

    def __init__(self, parts: Parts, log: logging.Logger) -> None:
        super().__init__(parts, log)
        self.uploads = UploadSlots(parts.limits, parts.metrics)

    @override
    async def content(self, target: Target, response: ResponseWriter, scope: Scope) -> None:
        request_record(scope).source = FROM_STORE
        digest = target.digest
        if digest is None:
            digest = (await self.ask_store(self.store.resolve(self.reference(target)))).digest
        # Also of what a tag stands for: what is recorded with the tag need not be what the document says.
        descriptor = requested_descriptor(target, await self.ask_store(self.store.describe(digest)))
        if not response.wants_body:
            await send_stored(response, self.opener, descriptor)
            return
        client = scope.get("client")
        with self.uploads.slot(client[0] if client else ""):
            await send_stored(response, self.opener, descriptor)
