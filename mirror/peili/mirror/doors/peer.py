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

from peili.mirror.doors.door import Door, check_type
from peili.mirror.doors.refusal import TOOMANYREQUESTS, Refusal
from peili.mirror.doors.reply import Reply
from peili.mirror.doors.stored import send_stored
from peili.mirror.doors.target import Target
from peili.mirror.limits import Limits
from peili.mirror.parts import Parts


class Uploads:
    """Counts the uploads under way, in all and for each host, and refuses those above the bound."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._of_host: Counter[str] = Counter()

    @contextmanager
    def slot(self, host: str) -> Generator[None]:
        """Held while `host` is served. Raises Refusal (429)."""
        if self._of_host.total() >= self._limits.uploads or self._of_host[host] >= self._limits.uploads_per_peer:
            raise Refusal(429, TOOMANYREQUESTS, "as many uploads as may be are under way", {"Retry-After": "1"})
        self._of_host[host] += 1
        try:
            yield
        finally:
            self._of_host[host] -= 1
            self._of_host += Counter()  # drops those at zero


class PeerDoor(Door):
    """Answers other hosts from this host's store."""

    def __init__(self, parts: Parts, log: logging.Logger) -> None:
        super().__init__(parts, log)
        self.uploads = Uploads(parts.limits)

    @override
    async def content(self, target: Target, reply: Reply, scope: Scope) -> None:
        if target.digest is None:
            descriptor = await self.store.resolve(self.reference(target))
        else:
            descriptor = await self.store.describe(target.digest)
        check_type(target, descriptor.media_type)
        if not reply.wants_body:
            await send_stored(reply, self.store, descriptor)
            return
        client = scope.get("client")
        with self.uploads.slot(client[0] if client else ""):
            await send_stored(reply, self.store, descriptor)
